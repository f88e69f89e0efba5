// Comes first in every source of XGrammar: other names for what it allocates with, which native/grammar/xgrammar_hooks.cpp defines.
#pragma once

#include <cstddef>

void* operator new(std::size_t size) __asm__("_ZN14gemma_xgrammarnwEm");
void operator delete(void* pointer, std::size_t size) noexcept __asm__("_ZN14gemma_xgrammardlEPvm");
