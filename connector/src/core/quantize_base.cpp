#define NEVE_KERNEL kBaseQuantize
#define NEVE_KERNEL_NAME "base"
#include "quantize_kernel.inc"
