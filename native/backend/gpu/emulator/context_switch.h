// How the emulator goes from one thread of a block to another: by changing stacks, without the operating system.
#pragma once

#include <cstddef>

// Saves the registers a call must keep on the stack, stores the stack pointer to *save, continues at load.
extern "C" void gemma_emulator_switch(void** save, void* load);

namespace gemma::emulator {

// The stack pointer with which a switch calls main(argument), which must not return. end: of the stack's memory,
// aligned to 64.
void* new_stack(std::byte* end, void (*main)(void*), void* argument);

}  // namespace gemma::emulator
