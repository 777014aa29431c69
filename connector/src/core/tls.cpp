#include "tls.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>

namespace neve {
namespace {

// The used part of OpenSSL 3's stable interface, with its documented numbers, so that building
// needs no OpenSSL. Source: openssl/ssl.h, openssl/tls1.h, openssl/x509_vfy.h of 3.0.
constexpr int kFiletypePem = 1, kVerifyPeer = 1;
constexpr int kErrorWantRead = 2, kErrorWantWrite = 3, kErrorZeroReturn = 6;
constexpr int kCtrlMode = 33, kCtrlSetHostName = 55, kCtrlSetMinVersion = 123;
constexpr long kModePartialWrite = 1, kModeMovingBuffer = 2, kModeReleaseBuffers = 16;
constexpr long kTls12 = 0x0303;

struct OpenSsl {
  void* (*tls_client_method)();
  void* (*ctx_new)(const void*);
  void (*ctx_free)(void*);
  int (*ctx_load_verify_locations)(void*, const char*, const char*);
  int (*ctx_set_default_verify_paths)(void*);
  int (*ctx_use_certificate_chain_file)(void*, const char*);
  int (*ctx_use_private_key_file)(void*, const char*, int);
  int (*ctx_check_private_key)(const void*);
  void (*ctx_set_verify)(void*, int, void*);
  long (*ctx_ctrl)(void*, int, long, void*);
  void* (*ssl_new)(void*);
  void (*ssl_free)(void*);
  int (*set_fd)(void*, int);
  int (*connect)(void*);
  int (*read_ex)(void*, void*, std::size_t, std::size_t*);
  int (*write_ex)(void*, const void*, std::size_t, std::size_t*);
  int (*get_error)(const void*, int);
  long (*ctrl)(void*, int, long, void*);
  int (*set1_host)(void*, const char*);
  void* (*get0_param)(void*);
  long (*get_verify_result)(const void*);
  int (*param_set1_ip_asc)(void*, const char*);
  const char* (*verify_error_string)(long);
  unsigned long (*err_get_error)();
  void (*err_clear_error)();
  void (*err_error_string_n)(unsigned long, char*, std::size_t);
};

template <typename Function>
void bind(void* library, const char* name, Function& function) {
  void* symbol = ::dlsym(library, name);
  if (symbol == nullptr) throw TlsError(std::string("this OpenSSL has no ") + name);
  function = reinterpret_cast<Function>(symbol);
}

OpenSsl load() {
  // Never dlclose it: OpenSSL registers handlers that run at process exit.
  void* ssl = ::dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
  void* crypto = ::dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
  if (ssl == nullptr || crypto == nullptr) {
    throw TlsError("TLS needs OpenSSL 3 on this host (libssl.so.3), which was not found");
  }
  OpenSsl table{};
  bind(ssl, "TLS_client_method", table.tls_client_method);
  bind(ssl, "SSL_CTX_new", table.ctx_new);
  bind(ssl, "SSL_CTX_free", table.ctx_free);
  bind(ssl, "SSL_CTX_load_verify_locations", table.ctx_load_verify_locations);
  bind(ssl, "SSL_CTX_set_default_verify_paths", table.ctx_set_default_verify_paths);
  bind(ssl, "SSL_CTX_use_certificate_chain_file", table.ctx_use_certificate_chain_file);
  bind(ssl, "SSL_CTX_use_PrivateKey_file", table.ctx_use_private_key_file);
  bind(ssl, "SSL_CTX_check_private_key", table.ctx_check_private_key);
  bind(ssl, "SSL_CTX_set_verify", table.ctx_set_verify);
  bind(ssl, "SSL_CTX_ctrl", table.ctx_ctrl);
  bind(ssl, "SSL_new", table.ssl_new);
  bind(ssl, "SSL_free", table.ssl_free);
  bind(ssl, "SSL_set_fd", table.set_fd);
  bind(ssl, "SSL_connect", table.connect);
  bind(ssl, "SSL_read_ex", table.read_ex);
  bind(ssl, "SSL_write_ex", table.write_ex);
  bind(ssl, "SSL_get_error", table.get_error);
  bind(ssl, "SSL_ctrl", table.ctrl);
  bind(ssl, "SSL_set1_host", table.set1_host);
  bind(ssl, "SSL_get0_param", table.get0_param);
  bind(ssl, "SSL_get_verify_result", table.get_verify_result);
  bind(crypto, "X509_VERIFY_PARAM_set1_ip_asc", table.param_set1_ip_asc);
  bind(crypto, "X509_verify_cert_error_string", table.verify_error_string);
  bind(crypto, "ERR_get_error", table.err_get_error);
  bind(crypto, "ERR_clear_error", table.err_clear_error);
  bind(crypto, "ERR_error_string_n", table.err_error_string_n);
  return table;
}

const OpenSsl& openssl() {
  static const OpenSsl table = load();  // if it throws, the next call tries again
  return table;
}

std::string last_error(const char* what) {
  const auto code = openssl().err_get_error();
  if (code == 0) return what;
  char text[256];
  openssl().err_error_string_n(code, text, sizeof text);
  return std::string(what) + ": " + text;
}

bool is_ip(const std::string& host) {
  in6_addr ignored{};
  return ::inet_pton(AF_INET, host.c_str(), &ignored) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), &ignored) == 1;
}

}  // namespace

void TlsContext::Free::operator()(void* context) const { openssl().ctx_free(context); }
void TlsSession::Free::operator()(void* ssl) const { openssl().ssl_free(ssl); }

TlsContext::TlsContext(const TlsOptions& options) : server_name_(options.server_name) {
  const auto& api = openssl();
  api.err_clear_error();
  context_.reset(api.ctx_new(api.tls_client_method()));
  void* context = context_.get();
  if (context == nullptr) throw TlsError(last_error("no TLS context"));
  api.ctx_ctrl(context, kCtrlSetMinVersion, kTls12, nullptr);
  api.ctx_ctrl(context, kCtrlMode, kModePartialWrite | kModeMovingBuffer | kModeReleaseBuffers,
               nullptr);
  api.ctx_set_verify(context, kVerifyPeer, nullptr);
  const bool trusts = options.ca_file.empty() ? api.ctx_set_default_verify_paths(context) == 1
                                              : api.ctx_load_verify_locations(
                                                    context, options.ca_file.c_str(), nullptr) == 1;
  if (!trusts) throw TlsError(last_error(("CA file " + options.ca_file).c_str()));
  if (options.certificate_file.empty()) return;
  const auto& key = options.key_file.empty() ? options.certificate_file : options.key_file;
  if (api.ctx_use_certificate_chain_file(context, options.certificate_file.c_str()) != 1) {
    throw TlsError(last_error(("certificate file " + options.certificate_file).c_str()));
  }
  if (api.ctx_use_private_key_file(context, key.c_str(), kFiletypePem) != 1 ||
      api.ctx_check_private_key(context) != 1) {
    throw TlsError(last_error(("key file " + key).c_str()));
  }
}

TlsSession TlsContext::connect(int fd, const std::string& host) const {
  const auto& api = openssl();
  const auto& name = server_name_.empty() ? host : server_name_;
  api.err_clear_error();
  void* ssl = api.ssl_new(context_.get());
  if (ssl == nullptr) throw TlsError(last_error("no TLS session"));
  TlsSession session(ssl);
  bool ready = api.set_fd(ssl, fd) == 1;
  if (is_ip(name)) {
    ready = ready && api.param_set1_ip_asc(api.get0_param(ssl), name.c_str()) == 1;
  } else {
    ready = ready && api.set1_host(ssl, name.c_str()) == 1 &&
            api.ctrl(ssl, kCtrlSetHostName, 0, const_cast<char*>(name.c_str())) == 1;
  }
  if (!ready) throw TlsError(last_error("TLS session"));
  return session;
}

TlsSession::TlsSession(void* ssl) : ssl_(ssl) {}

TlsProgress TlsSession::handshake() {
  openssl().err_clear_error();
  const auto progress = progress_of(openssl().connect(ssl_.get()));
  if (progress == TlsProgress::kFailed) {
    const auto verdict = openssl().get_verify_result(ssl_.get());
    if (verdict != 0) trouble_ = std::string("TLS: ") + openssl().verify_error_string(verdict);
  }
  return progress;
}

TlsProgress TlsSession::read(void* data, std::size_t size, std::size_t& count) {
  openssl().err_clear_error();
  return progress_of(openssl().read_ex(ssl_.get(), data, size, &count));
}

TlsProgress TlsSession::write(const void* data, std::size_t size, std::size_t& count) {
  openssl().err_clear_error();
  return progress_of(openssl().write_ex(ssl_.get(), data, size, &count));
}

std::string TlsSession::trouble() const { return trouble_; }

TlsProgress TlsSession::progress_of(int result) {
  if (result == 1) return TlsProgress::kDone;
  switch (openssl().get_error(ssl_.get(), result)) {
    case kErrorWantRead:
      return TlsProgress::kWantRead;
    case kErrorWantWrite:
      return TlsProgress::kWantWrite;
    case kErrorZeroReturn:
      trouble_ = "connection closed by the server";
      return TlsProgress::kClosed;
    default:
      trouble_ = last_error("TLS");
      return TlsProgress::kFailed;
  }
}

}  // namespace neve
