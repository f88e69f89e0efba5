// All kernels of the GPU backend (kernel_list.h): compiled by nvcc and by clang for AMD into blobs, and as C++ for the
// emulated device, once for each chip.
#include "backend/gpu/attention.h"
#include "backend/gpu/linear.h"
#include "backend/gpu/top.h"
#include "backend/gpu/vector.h"
