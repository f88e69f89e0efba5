# Code that is compiled for one instruction set must not run anywhere else. Of an inline function with external linkage
# (std::min, a member function in a header) every object that uses it has a copy, and the linker keeps any one of them for
# all. So no object compiled with an instruction set's flags may have such a function. Whether there is one depends on what
# the compiler inlines: without optimisation nothing is.
#
#   cmake -D NM=nm -D "OBJECTS=one.o;two.o" -P isolation.cmake
set(n_passed 0)
set(n_failed 0)
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(NOT symbols MATCHES " [Tt] ")
    message("${object}: has no functions at all")
    math(EXPR n_failed "${n_failed} + 1")
    continue()
  endif()
  string(REGEX MATCHALL "[^\n]* W [^\n]*" shared "${symbols}")  # weak, and no data
  if(shared STREQUAL "")
    math(EXPR n_passed "${n_passed} + 1")
    continue()
  endif()
  math(EXPR n_failed "${n_failed} + 1")
  foreach(symbol ${shared})
    string(REGEX REPLACE "^.* W " "" symbol "${symbol}")
    message("${object}: ${symbol} is shared with code of other instruction sets")
  endforeach()
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -E echo "${n_passed} passed, ${n_failed} failed")
if(n_failed GREATER 0 OR n_passed EQUAL 0)
  message(FATAL_ERROR "functions that must not be shared")
endif()
