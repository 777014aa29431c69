#include "check.h"

int main(int argc, char** argv) { return neve::testing::run(argc > 1 ? argv[1] : ""); }
