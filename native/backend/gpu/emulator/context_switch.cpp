#include "backend/gpu/emulator/context_switch.h"

#include <cstdint>
#include <cstring>

// Where a new stack begins: calls what lies in the second of the kept registers with the first.
extern "C" void gemma_emulator_start();
#if defined(__x86_64__)
asm(R"(
.text
.globl gemma_emulator_switch
.hidden gemma_emulator_switch
.type gemma_emulator_switch,@function
gemma_emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.globl gemma_emulator_start
.hidden gemma_emulator_start
.type gemma_emulator_start,@function
gemma_emulator_start:
  movq %r12,%rdi
  callq *%r13
  ud2
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl gemma_emulator_switch
.hidden gemma_emulator_switch
.type gemma_emulator_switch,%function
gemma_emulator_switch:
  sub sp,sp,#160
  stp x19,x20,[sp]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]; stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
  mov x9,sp; str x9,[x0]; mov sp,x1
  ldp x19,x20,[sp]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]; ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
  add sp,sp,#160
  ret
.globl gemma_emulator_start
.hidden gemma_emulator_start
.type gemma_emulator_start,%function
gemma_emulator_start:
  mov x0,x19
  blr x20
  brk #0
)");
#else
#error "add a context switch for this processor"
#endif

namespace gemma::emulator {

void* new_stack(std::byte* end, void (*main)(void*), void* argument) {
  auto* top = reinterpret_cast<uint64_t*>(end - 64);
  const auto start = reinterpret_cast<uint64_t>(&gemma_emulator_start);
  const auto function = reinterpret_cast<uint64_t>(main);
  const auto value = reinterpret_cast<uint64_t>(argument);
#if defined(__x86_64__)
  top -= 2;  // keeps the stack aligned to 16 bytes at the call
  top[0] = top[1] = 0;
  *--top = start;
  const uint64_t registers[6] = {0, 0, function, value, 0, 0};  // r15 r14 r13 r12 rbx rbp
  top -= 6;
  std::memcpy(top, registers, sizeof registers);
#else
  top -= 20;
  std::memset(top, 0, 160);
  top[0] = value;
  top[1] = function;
  top[11] = start;
#endif
  return top;
}

}  // namespace gemma::emulator
