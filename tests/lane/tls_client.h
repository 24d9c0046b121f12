// A TLS client over a connected socket that does not block.
#pragma once

#include <doctest/doctest.h>
#include <openssl/ssl.h>

#include <memory>
#include <string>
#include <utility>

#include "descriptor.h"

namespace lane {

class TlsClient {
 public:
  struct Options {
    std::string ca;
    std::string certificate = {};
    std::string key = {};
    std::string protocol = "h2";  // none where it is empty
  };

  TlsClient(Descriptor socket, Options options)
      : context_(SSL_CTX_new(TLS_client_method())), socket_(std::move(socket)) {
    REQUIRE(SSL_CTX_load_verify_file(context_.get(), options.ca.c_str()) == 1);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    if (!options.certificate.empty()) {
      REQUIRE(SSL_CTX_use_certificate_file(context_.get(), options.certificate.c_str(),
                                           SSL_FILETYPE_PEM) == 1);
      REQUIRE(SSL_CTX_use_PrivateKey_file(context_.get(), options.key.c_str(), SSL_FILETYPE_PEM) ==
              1);
    }
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), socket_.get());
    SSL_set_connect_state(ssl_.get());
    if (options.protocol.empty()) return;
    const std::string offered = static_cast<char>(options.protocol.size()) + options.protocol;
    SSL_set_alpn_protos(ssl_.get(), reinterpret_cast<const unsigned char*>(offered.data()),
                        static_cast<unsigned>(offered.size()));
  }

  int fd() const { return socket_.get(); }
  bool handshake() { return SSL_do_handshake(ssl_.get()) == 1; }
  std::string protocol() const {
    const unsigned char* name = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl_.get(), &name, &size);
    return {reinterpret_cast<const char*>(name), size};
  }
  // Bytes that went, as far as they do.
  std::size_t write(const std::string& bytes) {
    std::size_t sent = 0;
    for (std::size_t count = 0; sent < bytes.size(); sent += count) {
      if (SSL_write_ex(ssl_.get(), bytes.data() + sent, bytes.size() - sent, &count) != 1) break;
    }
    return sent;
  }
  // What has come.
  std::string read() {
    std::string bytes;
    char buffer[16384];
    for (;;) {
      std::size_t count = 0;
      const int result = SSL_read_ex(ssl_.get(), buffer, sizeof buffer, &count);
      if (result != 1) {
        const int error = SSL_get_error(ssl_.get(), result);
        closed_ = error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE;
        return bytes;
      }
      bytes.append(buffer, count);
    }
  }
  bool closed() const { return closed_; }

 private:
  struct Free {
    void operator()(SSL* each) const { SSL_free(each); }
    void operator()(SSL_CTX* each) const { SSL_CTX_free(each); }
  };
  std::unique_ptr<SSL_CTX, Free> context_;
  Descriptor socket_;
  std::unique_ptr<SSL, Free> ssl_;
  bool closed_ = false;
};

}  // namespace lane
