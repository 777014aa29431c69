// One build of the lossy codecs. Like checksum_kernel.h, it must include nothing with inline
// functions that other files share: it is compiled several times with different CPU flags.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace neve {

// Until `fp8_to_float`, numbers of one vector. `plain`: bf16 or float. `codes`: one byte each.
// `scale`: bf16.
struct QuantizeKernel {
  const char* name;
  uint16_t (*int8_from_bf16)(const uint16_t* plain, uint8_t* codes, size_t count);
  uint16_t (*int8_from_float)(const float* plain, uint8_t* codes, size_t count);
  void (*int8_to_bf16)(const uint8_t* codes, uint16_t scale, uint16_t* plain, size_t count);
  void (*int8_to_float)(const uint8_t* codes, uint16_t scale, float* plain, size_t count);
  uint16_t (*fp8_from_bf16)(const uint16_t* plain, uint8_t* codes, size_t count);
  uint16_t (*fp8_from_float)(const float* plain, uint8_t* codes, size_t count);
  void (*fp8_to_bf16)(const uint8_t* codes, uint16_t scale, uint16_t* plain, size_t count);
  void (*fp8_to_float)(const uint8_t* codes, uint16_t scale, float* plain, size_t count);

  // A matrix of `tokens` rows of `size` numbers, even and at most kMostChannels. `codes`: half a
  // byte each. `scales`, `zeros`: bf16, one for each channel of keys, for each token of values.
  void (*keys_from_bf16)(const uint16_t* plain, uint8_t* codes, uint16_t* scales, uint16_t* zeros,
                         size_t tokens, size_t size);
  void (*keys_from_float)(const float* plain, uint8_t* codes, uint16_t* scales, uint16_t* zeros,
                          size_t tokens, size_t size);
  void (*keys_to_bf16)(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                       uint16_t* plain, size_t tokens, size_t size);
  void (*keys_to_float)(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                        float* plain, size_t tokens, size_t size);
  void (*values_from_bf16)(const uint16_t* plain, uint8_t* codes, uint16_t* scales, uint16_t* zeros,
                           size_t tokens, size_t size);
  void (*values_from_float)(const float* plain, uint8_t* codes, uint16_t* scales, uint16_t* zeros,
                            size_t tokens, size_t size);
  void (*values_to_bf16)(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                         uint16_t* plain, size_t tokens, size_t size);
  void (*values_to_float)(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                          float* plain, size_t tokens, size_t size);
};

constexpr size_t kMostChannels = 1024;

extern const QuantizeKernel kBaseQuantize;
#ifdef NEVE_AVX2
extern const QuantizeKernel kAvx2Quantize;
#endif

}  // namespace neve
