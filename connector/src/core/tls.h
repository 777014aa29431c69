// TLS with the host's OpenSSL 3, loaded on first use (docs/decisions/002-native-core.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace neve {

struct TlsOptions {
  std::string ca_file;      // empty: the host's own authorities
  std::string server_name;  // empty: the host name of each endpoint
  std::string certificate_file;
  std::string key_file;
};

// OpenSSL is missing, or a certificate file is unusable; the message says which.
class TlsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class TlsProgress : std::uint8_t { kDone, kWantRead, kWantWrite, kClosed, kFailed };

// One session over a non-blocking socket, which it does not own. One thread at a time.
class TlsSession {
 public:
  explicit TlsSession(void* ssl);
  TlsProgress handshake();
  TlsProgress read(void* data, std::size_t size, std::size_t& count);
  TlsProgress write(const void* data, std::size_t size, std::size_t& count);
  std::string trouble() const;  // why the last call failed

 private:
  TlsProgress progress_of(int result);

  struct Free {
    void operator()(void* ssl) const;
  };
  std::unique_ptr<void, Free> ssl_;
  std::string trouble_;
};

// Certificates and options, shared by all sessions. For any thread.
class TlsContext {
 public:
  explicit TlsContext(const TlsOptions& options);  // throws TlsError
  // Will verify the server as `host`, or as the options' server name. Throws TlsError.
  TlsSession connect(int fd, const std::string& host) const;

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
  std::string server_name_;
};

}  // namespace neve
