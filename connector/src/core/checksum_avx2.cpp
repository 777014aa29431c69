// Compiled with -mavx2; called only where the CPU says that it has it.
#define NEVE_KERNEL kAvx2Kernel
#define NEVE_KERNEL_NAME "avx2"
#include "checksum_kernel.inc"
