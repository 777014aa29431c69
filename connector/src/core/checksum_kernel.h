// One build of XXH3. This header is compiled several times with different CPU flags, so it must
// include nothing with inline functions that other files share: the linker would keep any one copy.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace neve {

struct ChecksumKernel {
  const char* name;
  uint64_t (*once)(const void* data, size_t size);
  void* (*make)();
  void (*free)(void* state);
  void (*reset)(void* state);
  void (*update)(void* state, const void* data, size_t size);
  uint64_t (*digest)(const void* state);
};

extern const ChecksumKernel kBaseKernel;
#ifdef NEVE_AVX2
extern const ChecksumKernel kAvx2Kernel;
#endif

}  // namespace neve
