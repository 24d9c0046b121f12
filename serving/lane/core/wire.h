// Wire: the bytes of a connected socket, plain or by TLS. Never blocks.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <sys/types.h>

#include "descriptor.h"

namespace lane {

class Wire {
 public:
  static constexpr ssize_t again = -1;   // nothing to read, or no room to write, for now
  static constexpr ssize_t broken = -2;  // it is over

  virtual ~Wire() = default;
  // Bytes read, 0 at the end, `again` or `broken`.
  virtual ssize_t read(void* data, std::size_t size) = 0;
  // Bytes written, `again` or `broken`.
  virtual ssize_t write(const void* data, std::size_t size) = 0;
  // TLS may have to write in order to read, and the other way round.
  virtual bool wants_write() const { return false; }
  // The handshake is over, if there is one; until then `read` goes on with it.
  virtual bool ready() const { return true; }
  // Nothing more will be written: what was written still arrives, also if the peer goes on sending.
  virtual void finish() = 0;
  // Of the peer's certificate, once the handshake is over; empty without one.
  virtual std::string identity() const { return {}; }
  virtual int fd() const = 0;
};

// A socket as it is.
std::unique_ptr<Wire> plain_wire(Descriptor socket);

// TLS of a server, by OpenSSL, with ALPN "h2"; made once, and for each connection a wire.
struct TlsOptions {
  std::string certificate;  // PEM, with those that lead to its CA
  std::string key;
  std::string client_ca;    // with one, clients must show a certificate that it signed
};

class Tls {
 public:
  explicit Tls(const TlsOptions& options);  // throws std::runtime_error, naming the option
  ~Tls();
  std::unique_ptr<Wire> wire(Descriptor socket) const;

 private:
  struct Context;
  std::shared_ptr<Context> context_;
};

}  // namespace lane
