// A real valkey-server on a Unix socket and a loopback port, which ends with this process.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace neve::testing {

class Server {
 public:
  Server() {
    std::string name = (std::filesystem::temp_directory_path() / "neve-core-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
    folder_ = name;
    start();
  }
  ~Server() {
    kill();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string seed() const { return "unix:" + socket(); }

  void start() {
    const auto path = socket();
    std::filesystem::remove(path);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(null, 0);
      ::dup2(null, 1);
      ::execlp("valkey-server", "valkey-server", "--port", "0", "--unixsocket", path.c_str(),
               "--save", "", "--dir", folder_.c_str(), "--maxmemory", "512mb", nullptr);
      ::_exit(127);
    }
    for (int i = 0; i < 200; ++i) {
      if (std::filesystem::exists(path)) return;
      ::usleep(20'000);
    }
    throw std::runtime_error("valkey-server did not start");
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void pause() const { ::kill(pid_, SIGSTOP); }
  void resume() const { ::kill(pid_, SIGCONT); }

 private:
  std::string socket() const { return folder_ + "/s"; }

  std::string folder_;
  pid_t pid_ = 0;
};

}  // namespace neve::testing
