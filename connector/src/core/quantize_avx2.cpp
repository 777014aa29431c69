// Compiled with -mavx2; called only if the CPU reports AVX2.
#define NEVE_KERNEL kAvx2Quantize
#define NEVE_KERNEL_NAME "avx2"
#include "quantize_kernel.inc"
