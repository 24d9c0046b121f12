// gRPC over HTTP/2: framing, grpc-timeout, percent-encoding, and the headers that answer a call.
//
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "clock.h"
#include "outcome.h"
#include "status.h"

namespace lane {

struct Header {
  std::string name;
  std::string value;
};

using Headers = std::vector<Header>;

// "100m" is 0.1; nothing where it is malformed.
std::optional<Seconds> parse_timeout(std::string_view text);

// As grpc-message has it.
std::string percent_encoded(std::string_view text);

// Five bytes: not compressed, and how long the message is.
std::string frame_prefix(std::size_t message_bytes);

// What arrives of a call's one message: exactly one frame, not compressed.
enum class Framing { incomplete, complete, compressed, too_large, malformed };
Framing framing(std::string_view body, std::size_t max_message_bytes, bool ended);

// Trailers of an answer: grpc-status 0 and what it cost, as serving/transport.py has them
// (server-timing, batch-size, model-version).
Headers answer_trailers(const Stages& stages, Seconds queue_seconds, const std::string& version);

// The same for one answer after the other: those of a batch that came together have the same, which
// are written once.
class AnswerTrailers {
 public:
  const std::shared_ptr<const Headers>& of(const Stages& stages, Seconds queue_seconds,
                                           const std::string& version);

 private:
  Stages stages_;
  Seconds queue_seconds_ = 0;
  std::string version_;
  std::shared_ptr<const Headers> headers_;
};

// Headers of a refusal, which are its trailers, too: grpc-status, grpc-message, pushback.
Headers refusal_trailers(const Refusal& refusal);

}  // namespace lane
