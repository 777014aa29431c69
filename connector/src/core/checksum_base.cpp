#define NEVE_KERNEL kBaseKernel
#define NEVE_KERNEL_NAME "base"
#include "checksum_kernel.inc"
