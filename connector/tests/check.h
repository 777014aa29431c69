// Minimal test framework: named tests, checks that print place and expression.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace neve::testing {

inline std::vector<std::pair<std::string, std::function<void()>>>& tests() {
  static std::vector<std::pair<std::string, std::function<void()>>> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> body) {
    tests().emplace_back(name, std::move(body));
  }
};

inline void fail(const char* file, int line, std::string_view what) {
  std::fprintf(stderr, "%s:%d: %.*s\n", file, line, static_cast<int>(what.size()), what.data());
  ++failures();
}

// Runs tests whose names contain `filter`.
inline int run(std::string_view filter) {
  for (const auto& [name, body] : tests()) {
    if (name.find(filter) == std::string::npos) continue;
    const int before = failures();
    try {
      body();
    } catch (const std::exception& error) {
      fail(name.c_str(), 0, error.what());
    }
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", name.c_str());
    std::fflush(stdout);
  }
  return failures() == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace neve::testing

#define TEST(name)                                                            \
  static void test_##name();                                                  \
  static const ::neve::testing::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) ::neve::testing::fail(__FILE__, __LINE__, #condition); \
  } while (false)
