// Server: the thread that moves bytes between sockets and connections. It owns the epoll, the
// listeners, every connection, and the outbox that batch threads put answers into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "connection.h"
#include "service.h"
#include "wire.h"

namespace lane {

struct ServerOptions {
  std::vector<int> listeners;      // listening sockets; the server closes them
  std::string upstream_path;       // the Unix socket of grpcio's server
  Limits limits;
  std::size_t max_connections = 10000;
  std::optional<TlsOptions> tls;
};

// The outbox of a server, made before it: the service needs it.
class ServerOutbox;
std::shared_ptr<ServerOutbox> make_outbox();
std::shared_ptr<Outbox> as_outbox(const std::shared_ptr<ServerOutbox>& outbox);

class Server {
 public:
  // Throws std::runtime_error for a certificate that is no good.
  Server(ServerOptions options, std::shared_ptr<InferService> service,
         std::shared_ptr<ServerOutbox> outbox);
  ~Server();  // as stop()

  void start();
  // Connections that are accepted from now on go by it; of any thread. For a server with TLS.
  // Throws std::runtime_error where it is no good, and all stays as it was.
  void renew(const TlsOptions& tls);
  // Listen no more, and ask every client to go elsewhere; returns at once.
  void drain();
  // Whether no ModelInfer call is inside any more, be it passed on, after at most so many seconds.
  bool wait_until_idle(Seconds timeout);
  // Close all that is left.
  void stop();
  std::size_t connections() const;
  // Connections that were closed at once, as there was no room for one more.
  std::uint64_t turned_away() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lane
