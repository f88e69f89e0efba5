# Device code of the GPU backend: every kernel source compiled for every chip, each result embedded as one blob in a generated
# table (native/backend/gpu/device_image.h), from which the loader takes the one that fits the device. No CUDA or HIP language of
# CMake's: those want whole toolkits and link their runtimes, while this needs a compiler alone and the addon needs a driver alone.
#
# gemma_add_gpu_images(target source...) adds the table to the target, for GEMMA_BACKEND cuda or rocm.
set(GEMMA_CUDA_CHIPS "" CACHE STRING "NVIDIA chips by compute capability (75;86); empty: all that matter")
set(GEMMA_ROCM_CHIPS "" CACHE STRING "AMD chips (gfx906;gfx1100); empty: all that matter")
# One for each family and for each member with instructions or a schedule of its own; a chip runs code of an earlier member of its
# family as well. Newer families than the last get its PTX.
set(default_cuda_chips 75 80 86 89 90 100 120)
set(default_rocm_chips gfx906 gfx908 gfx90a gfx942 gfx1030 gfx1031 gfx1032 gfx1100 gfx1101 gfx1102 gfx1150 gfx1151 gfx1200 gfx1201)

set(gpu_folder ${CMAKE_CURRENT_BINARY_DIR}/gpu)
set(gpu_warnings -Wall -Wextra)

# A folder with AMD's device libraries and a file for each of the chips. Releases that are older than a chip lack its file, which
# holds the chip's number and nothing else; the compiler asks for it by name.
function(gemma_hip_bitcode out)
  set(folder ${gpu_folder}/bitcode)
  file(MAKE_DIRECTORY ${folder})
  file(GLOB libraries ${GEMMA_HIP_BITCODE}/*.bc)
  foreach(library ${libraries})
    get_filename_component(name ${library} NAME)
    file(CREATE_LINK ${library} ${folder}/${name} SYMBOLIC)
  endforeach()
  foreach(chip ${ARGN})
    string(REGEX REPLACE "^gfx" "" number ${chip})
    if(EXISTS ${folder}/oclc_isa_version_${number}.bc)
      continue()
    endif()
    # gfx<major><minor><stepping>, the last two one hexadecimal digit each
    string(LENGTH ${number} length)
    math(EXPR cut "${length} - 2")
    string(SUBSTRING ${number} 0 ${cut} major)
    string(SUBSTRING ${number} ${cut} 1 minor)
    math(EXPR cut "${length} - 1")
    string(SUBSTRING ${number} ${cut} 1 stepping)
    math(EXPR version "${major} * 1000 + 0x${minor} * 100 + 0x${stepping}")
    set(text "${folder}/isa_${number}.ll")
    file(WRITE ${text} "target triple = \"amdgcn-amd-amdhsa\"\n@__oclc_ISA_version = linkonce_odr hidden local_unnamed_addr addrspace(4) constant i32 ${version}, align 4\n")
    execute_process(COMMAND ${GEMMA_HIP_CLANG} --target=amdgcn-amd-amdhsa -nogpulib -x ir -c -emit-llvm ${text}
      -o ${folder}/oclc_isa_version_${number}.bc COMMAND_ERROR_IS_FATAL ANY)
  endforeach()
  set(${out} ${folder} PARENT_SCOPE)
endfunction()

# One blob: source for chip, by the command that follows.
function(gemma_gpu_blob out source chip)
  get_filename_component(name ${source} NAME_WE)
  set(blob ${gpu_folder}/${name}-${chip}.bin)
  add_custom_command(OUTPUT ${blob} COMMAND ${ARGN} -MD -MF ${blob}.d -o ${blob} ${source}
    DEPENDS ${source} DEPFILE ${blob}.d VERBATIM COMMENT "Kernels ${name} for ${chip}")
  set(${out} ${blob} PARENT_SCOPE)
endfunction()

function(gemma_add_gpu_images target)
  file(MAKE_DIRECTORY ${gpu_folder})
  set(include -I${CMAKE_CURRENT_SOURCE_DIR}/native)
  if(GEMMA_WERROR)
    set(nvcc_errors -Werror all-warnings)
    set(clang_errors -Werror)
  endif()
  if(GEMMA_BACKEND STREQUAL "cuda")
    if(NOT GEMMA_NVCC)
      find_program(GEMMA_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    endif()
    if(NOT GEMMA_NVCC)
      message(FATAL_ERROR "GEMMA_BACKEND=cuda: no nvcc; `npm run build:cuda` says how to get it, or set GEMMA_NVCC")
    endif()
    set(host_compiler ${CMAKE_CXX_COMPILER})
    if(GEMMA_ZIG)  # one program with subcommands; device code is the same whatever reads the host's half
      find_program(GEMMA_CUDA_HOST_COMPILER NAMES c++ g++ clang++ REQUIRED)
      set(host_compiler ${GEMMA_CUDA_HOST_COMPILER})
    endif()
    set(chips ${GEMMA_CUDA_CHIPS})
    if(NOT chips)
      set(chips ${default_cuda_chips})
    endif()
  else()
    if(NOT GEMMA_HIP_CLANG OR NOT GEMMA_HIP_ROOT OR NOT GEMMA_HIP_BITCODE)
      message(FATAL_ERROR "GEMMA_BACKEND=rocm: set GEMMA_HIP_CLANG (clang++ 19 or newer), GEMMA_HIP_ROOT (include/hip) and "
        "GEMMA_HIP_BITCODE (ocml.bc); `npm run build:rocm` finds them or says how to get them")
    endif()
    set(chips ${GEMMA_ROCM_CHIPS})
    if(NOT chips)
      set(chips ${default_rocm_chips})
    endif()
    gemma_hip_bitcode(bitcode ${chips})
  endif()
  list(GET chips -1 last)

  set(blobs)
  set(assembly "")
  set(declarations "")
  set(entries "")
  foreach(chip ${chips})
    foreach(source ${ARGN})
      set(source ${CMAKE_CURRENT_SOURCE_DIR}/${source})
      set(portable false)
      if(GEMMA_BACKEND STREQUAL "cuda")
        set(code sm_${chip})
        if(chip STREQUAL last)
          set(code [${code},compute_${chip}])
          set(portable true)
        endif()
        gemma_gpu_blob(blob ${source} ${chip} ${GEMMA_NVCC} -ccbin ${host_compiler} -x cu -std=c++17 -O3 -fatbin
          -gencode arch=compute_${chip},code=${code} -Xfatbin=-compress-all -fmad=false --expt-relaxed-constexpr
          -Xcompiler=-Wall,-Wextra ${nvcc_errors} ${include})
        set(name "sm_${chip}")
      else()
        # Code objects of version 4: also ROCm 5 loads them.
        gemma_gpu_blob(blob ${source} ${chip} ${GEMMA_HIP_CLANG} -x hip -std=c++17 -O3 -ffp-contract=off --offload-arch=${chip}
          --cuda-device-only --no-gpu-bundle-output -mcode-object-version=4 --rocm-path=${GEMMA_HIP_ROOT}
          --rocm-device-lib-path=${bitcode} -D__HIP_PLATFORM_AMD__=1 -Wall -Wextra ${clang_errors} ${include})
        set(name "${chip}")
      endif()
      list(LENGTH blobs index)
      list(APPEND blobs ${blob})
      string(APPEND assembly "\".balign 64\\ngemma_gpu_image_${index}: .incbin \\\"${blob}\\\"\\ngemma_gpu_image_${index}_end:\\n\"\n")
      string(APPEND declarations "extern const unsigned char gemma_gpu_image_${index}[];\nextern const unsigned char gemma_gpu_image_${index}_end[];\n")
      string(APPEND entries "    {\"${name}\", ${portable}, gemma_gpu_image_${index}, gemma_gpu_image_${index}_end},\n")
    endforeach()
  endforeach()
  set(table ${gpu_folder}/device_images.cpp)
  file(CONFIGURE OUTPUT ${table} CONTENT [[
// Made by cmake/GpuImages.cmake.
#include "backend/gpu/device_image.h"

__asm__(".section .rodata\n"
@assembly@".previous\n");
extern "C" {
@declarations@}
namespace gemma::gpu {
namespace {
const DeviceImage kImages[] = {
@entries@};
}  // namespace
std::span<const DeviceImage> device_images() { return kImages; }
}  // namespace gemma::gpu
]] @ONLY)
  # The compiler does not see what the assembler includes, nor does ccache.
  set_source_files_properties(${table} PROPERTIES OBJECT_DEPENDS "${blobs}" SKIP_LINTING ON)
  if(GEMMA_ZIG)
    # It keeps results by what it has read, which the included bytes are not: no two compilations may look alike.
    string(TIMESTAMP now %s)
    set_source_files_properties(${table} PROPERTIES COMPILE_DEFINITIONS GEMMA_CONFIGURED_AT=${now})
  endif()
  target_sources(${target} PRIVATE ${table})
endfunction()
