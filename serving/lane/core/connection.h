// Connection: one client's HTTP/2 connection, from bytes in to bytes out. It opens no socket and
// waits for nothing, so that tests and fuzzers drive it as the loop does.
//
// It answers ModelInfer by the service; every other call, and what the service leaves, it passes on
// to an Upstream, stream by stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "clock.h"
#include "grpc.h"
#include "service.h"
#include "upstream.h"

namespace lane {

// What one connection may take and do. Seconds; 0 is no limit where it says so.
struct Limits {
  std::size_t max_message_bytes = 16 * 1024 * 1024;
  std::uint32_t max_streams = 4096;        // open at the same time
  std::size_t max_header_bytes = 16 * 1024;
  // Of requests that are still being received; and as much of answers that are not read, beyond
  // which no more requests are taken.
  std::size_t max_buffered_bytes = 64 * 1024 * 1024;
  // Of all connections of the service together: bodies of ModelInfer that are received, each with
  // the length that it says it has; but those that are whole at once, and are never refused for it.
  // What does not fit is refused as it begins; messages larger than 64 KiB may have three quarters,
  // so that small ones go on, and one connection no more than is left for all others. What is
  // passed on is not in it: each connection's windows bound that. As much of answers: the second
  // half of it is for those who read theirs.
  std::size_t max_buffered_by_all = 256 * 1024 * 1024;
  Seconds keepalive_time = 60;             // of silence until a peer is asked whether it lives
  Seconds keepalive_timeout = 20;          // for its answer
  Seconds min_ping_interval = 5;           // of a client's pings; those sooner are strikes
  int max_ping_strikes = 2;
  Seconds handshake_timeout = 20;          // until the client's preface and settings
  Seconds idle_timeout = 0;                // without a stream; 0 never
  Seconds stall_timeout = 30;              // a request that stops, a peer that reads nothing
  // Bytes per second of a request, and of an answer, on average but for the stall timeout: a byte
  // now and then is as good as none. As Apache's mod_reqtimeout has it; 16 MiB may take nine hours.
  double least_rate = 500;
  Seconds max_age = 0;                     // 0 for ever; each connection's is up to 10% off
  Seconds max_age_grace = 30;              // for its calls in flight, then
  double resets_per_second = 100;          // of streams by the client, on average (CVE-2023-44487)
  double resets_burst = 1000;
};

// Who called: for the metadata of what is passed on.
struct Peer {
  std::string address;   // as grpcio has it: "ipv4:127.0.0.1:5000"
  std::string identity;  // of its certificate; empty without one
};

// Makes the upstream of a connection, the first time that something is passed on.
using Connect = std::function<std::unique_ptr<Upstream>(Downstream& downstream)>;

class Connection : public Downstream {
 public:
  Connection(std::uint64_t id, Peer peer, const Limits& limits, InferService& service,
             Connect connect, Seconds now);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // What the client sent. False: nothing more is to be read.
  bool receive(const std::uint8_t* data, std::size_t size, Seconds now);
  // Appends what is to be sent, up to about `most` bytes; call again while it appends something.
  void send(std::string& out, std::size_t most);
  // So much waits to be sent that the client should not be read from until some has left.
  bool congested() const;
  // What came of a call that the service had taken; ignored where the stream is gone.
  void finish(std::int32_t stream, std::variant<Reply, Refusal> result);

  // Ask the client to go elsewhere: GOAWAY, twice, as RFC 9113 6.8 has it; calls in flight go on.
  void drain();
  // Was asked to, and may not have heard of it: calls that it begins are still taken.
  bool parting() const;
  // The last GOAWAY at once, and nothing after it: calls that had not begun may be made elsewhere.
  void end();
  // Acts on what has become due; when to come again, infinity for never.
  Seconds tick(Seconds now);
  // Nothing is in flight and nothing is left to send, or it is broken: it may be closed.
  bool finished() const;

  // Downstream, for what was passed on.
  void upstream_headers(std::int32_t stream, Headers headers, bool end) override;
  void upstream_data(std::int32_t stream, std::string_view bytes) override;
  void upstream_trailers(std::int32_t stream, Headers trailers) override;
  void upstream_reset(std::int32_t stream, std::uint32_t error) override;
  void upstream_taken(std::int32_t stream, std::size_t bytes) override;
  void upstream_lost() override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lane
