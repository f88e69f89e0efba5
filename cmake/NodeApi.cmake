# The Node-API addon, build/Release/gemma_native.node. cmake-js hands over the headers (CMAKE_JS_INC); plain CMake finds them
# in node_modules (packages node-api-headers and node-addon-api), so nothing is ever downloaded.
if(CMAKE_JS_INC)
  set(node_api_include_dirs ${CMAKE_JS_INC})
else()
  execute_process(COMMAND node -p "require('node-api-headers').include_dir" WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE node_api_include_dirs OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND node -p "require('node-addon-api').include_dir" WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
  OUTPUT_VARIABLE node_addon_api_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
cmake_path(ABSOLUTE_PATH node_addon_api_dir BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE)
list(APPEND node_api_include_dirs ${node_addon_api_dir})

set(kind MODULE)
if(APPLE AND GEMMA_ZIG)
  set(kind SHARED)  # zig 0.17 loses objects of a bundle or crashes; Node loads either
endif()
add_library(gemma_native ${kind}
  native/binding/addon.cpp
  native/binding/convert.cpp
  native/binding/environment.cpp
  native/binding/mailbox.cpp
  native/binding/model_binding.cpp
  native/binding/train_binding.cpp
  ${CMAKE_JS_SRC})
set_target_properties(gemma_native PROPERTIES PREFIX "" SUFFIX ".node"
  BUILD_WITH_INSTALL_NAME_DIR ON INSTALL_NAME_DIR "@rpath")  # else the library names the folder it was built in
target_include_directories(gemma_native SYSTEM PRIVATE ${node_api_include_dirs})
target_compile_definitions(gemma_native PRIVATE
  NAPI_VERSION=8
  NODE_ADDON_API_CPP_EXCEPTIONS_ALL        # whatever is thrown becomes a JavaScript error at the border
  NODE_ADDON_API_DISABLE_DEPRECATED
  NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS  # terminating a worker during a callback would abort the process
  NODE_API_NO_EXTERNAL_BUFFERS_ALLOWED     # Electron's memory cage; everything is copied
  BUILDING_NODE_EXTENSION)
target_link_libraries(gemma_native PRIVATE gemma_core ${CMAKE_JS_LIB})

if(APPLE)
  target_link_options(gemma_native PRIVATE -undefined dynamic_lookup)
elseif(MSVC)
  if(CMAKE_JS_NODELIB_DEF AND CMAKE_JS_NODELIB_TARGET)
    execute_process(COMMAND ${CMAKE_AR} /def:${CMAKE_JS_NODELIB_DEF} /out:${CMAKE_JS_NODELIB_TARGET} ${CMAKE_STATIC_LINKER_FLAGS}
      COMMAND_ERROR_IS_FATAL ANY)
  endif()
  target_link_options(gemma_native PRIVATE /DELAYLOAD:node.exe)
  target_link_libraries(gemma_native PRIVATE delayimp)
elseif(WIN32)
  # MinGW and zig have no delay-load hook. The pointers that stand for imported functions are filled from the program that
  # runs when the addon is loaded, so it may be called node.exe, electron.exe or by an app's own name.
  set(imports ${CMAKE_CURRENT_BINARY_DIR}/node_api_imports.cpp)
  add_custom_command(OUTPUT ${imports} COMMAND node ${CMAKE_CURRENT_SOURCE_DIR}/scripts/node-api-imports.mjs ${imports}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/scripts/node-api-imports.mjs WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} VERBATIM)
  target_sources(gemma_native PRIVATE ${imports})
else()
  # One file that runs beside any other C++ library and shows no symbol of its own. zig links its library in anyway.
  if(NOT GEMMA_ZIG)
    target_link_options(gemma_native PRIVATE -static-libstdc++ -static-libgcc)
  endif()
  target_link_options(gemma_native PRIVATE
    -Wl,--gc-sections -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map)
  set_target_properties(gemma_native PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map)
endif()
if(GEMMA_ZIG)
  target_link_options(gemma_native PRIVATE -s)  # without symbols
endif()
