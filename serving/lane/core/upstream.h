// Upstream: an HTTP/2 connection to the grpcio server on its Unix socket, for one client's calls
// that the lane does not answer itself. One for each client: what one does not read holds up no
// other. How windows are passed on is told in upstream.cpp.
//
// Sans-IO, like Connection: the loop moves its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "clock.h"
#include "grpc.h"

namespace lane {

// The client's side of what is passed on; streams have the client's numbers. It may call Upstream
// in answer to any of these, and destroys it in answer to `upstream_lost` at the earliest.
class Downstream {
 public:
  virtual ~Downstream() = default;
  // The response's headers, `:status` first; with `end`, they are all of it ("trailers only").
  virtual void upstream_headers(std::int32_t stream, Headers headers, bool end) = 0;
  // Part of the response; `Upstream::taken` tells when it has left, which opens the window again.
  virtual void upstream_data(std::int32_t stream, std::string_view bytes) = 0;
  // The end of the response; empty where it ended without.
  virtual void upstream_trailers(std::int32_t stream, Headers trailers) = 0;
  // The upstream ended the stream by RST_STREAM; never after the response's end, when it is for who
  // sends that on to stop a client that has not ended its request (RFC 9113, 8.1).
  virtual void upstream_reset(std::int32_t stream, std::uint32_t error) = 0;
  // So many bytes of the request have gone on: the client may send as many more. What is thrown
  // away counts, too: each byte of `data` comes back once, even if the stream is no more.
  virtual void upstream_taken(std::int32_t stream, std::size_t bytes) = 0;
  // The connection is gone, with all its streams.
  virtual void upstream_lost() = 0;
};

class Upstream {
 public:
  virtual ~Upstream() = default;
  // Begins a call: all its request headers, pseudo ones included.
  virtual void open(std::int32_t stream, Headers headers, bool end) = 0;
  // Part of the request's body; `end` after the last.
  virtual void data(std::int32_t stream, std::string_view bytes, bool end) = 0;
  // The client's stream is over: whenever that is before it has taken all of the response, be this
  // complete or not, as its bytes count until then. Ignored where there is nothing to end.
  virtual void reset(std::int32_t stream, std::uint32_t error) = 0;
  // So many bytes of the response have left to the client.
  virtual void taken(std::int32_t stream, std::size_t bytes) = 0;
};

// An Upstream over nghttp2's client side.
class UpstreamConnection : public Upstream {
 public:
  // `output` is called when there is something to send, so that somebody sends it.
  UpstreamConnection(Downstream& downstream, std::function<void()> output);
  ~UpstreamConnection() override;

  void open(std::int32_t stream, Headers headers, bool end) override;
  void data(std::int32_t stream, std::string_view bytes, bool end) override;
  void reset(std::int32_t stream, std::uint32_t error) override;
  void taken(std::int32_t stream, std::size_t bytes) override;

  // What the upstream sent; nothing (size 0) is the end of the socket. False: it is over,
  // `upstream_lost` has been called, and this may be gone with it.
  bool receive(const std::uint8_t* data, std::size_t size);
  // Those that are not over, or of whose response something was not taken yet.
  std::size_t calls() const;
  // Appends what is to be sent, up to about `most` bytes; call again while it appends something.
  void send(std::string& out, std::size_t most);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lane
