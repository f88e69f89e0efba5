# Cross builds with the C++ compiler of zig (Python package ziglang), which brings the headers and libraries of every target:
#   -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/zig.cmake -DZIG=/path/to/zig -DZIG_TARGET=aarch64-linux-gnu.2.28
# scripts/prebuild.mjs does this for all targets.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)
if(ZIG_TARGET MATCHES "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(ZIG_TARGET MATCHES "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_OSX_SYSROOT "")  # zig brings its own
  set(CMAKE_INSTALL_NAME_TOOL "${ZIG}")  # only looked for, never run: nothing is installed
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${ZIG_TARGET}")

# One program with subcommands: the compiler has its subcommand as an argument, the archiver in its rules.
set(CMAKE_CXX_COMPILER "${ZIG}" c++)
set(CMAKE_CXX_FLAGS_INIT "-target ${ZIG_TARGET}")
set(CMAKE_AR "${ZIG}")
set(CMAKE_CXX_COMPILER_AR "${ZIG}")
set(CMAKE_RANLIB "")
set(CMAKE_CXX_COMPILER_RANLIB "")
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/zig-archiver.cmake")
set(CMAKE_RC_COMPILER "${ZIG}")  # CMake wants one for Windows; there are no resources

# zig keeps results of equal compilations itself.
set(GEMMA_CCACHE "" CACHE FILEPATH "" FORCE)
set(GEMMA_ZIG ON)
