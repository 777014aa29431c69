// Compiled with -mavx2; called only if the CPU reports AVX2.
#define NEVE_KERNEL kAvx2Kernel
#define NEVE_KERNEL_NAME "avx2"
#include "checksum_kernel.inc"
