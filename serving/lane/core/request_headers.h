// RequestHeaders: the headers of one call, kept in one string, as few calls are passed on; and what
// the lane must know of them, noted as they arrive.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "clock.h"
#include "grpc.h"

namespace lane {

struct Peer;

class RequestHeaders {
 public:
  // For another call; the memory stays.
  void clear();
  // Keeps the header, as long as all are within `most` bytes; counts it anyway.
  void add(std::string_view name, std::string_view value, std::size_t most);

  // As SETTINGS_MAX_HEADER_LIST_SIZE counts: 32 more for each (RFC 9113 6.5.2).
  std::size_t bytes() const { return bytes_; }
  // It calls ModelInfer.
  bool infer() const { return post_ && infer_; }
  // In a way that the lane reads: gRPC, not compressed, a timeout that can be understood.
  bool plain() const { return grpc_ && !compressed_ && !odd_timeout_; }
  std::optional<Seconds> timeout() const { return timeout_; }
  // Its trace is to be recorded: https://www.w3.org/TR/trace-context/#sampled-flag
  bool sampled() const { return sampled_; }
  // Of x-request-id, or empty; valid until another header comes.
  std::string_view request_id() const;

  // Of authorization; empty where there is none, or more than one. As long as request_id().
  std::string_view authorization() const;

  // What the call was chosen for, as peer_metadata.h has it, or that it was for nothing: to be told
  // to the server behind. The text must last.
  void choose(std::string_view what) { chosen_ = what; }
  // All of them for the server behind, with who called; `timeout` in place of the client's.
  Headers passed_on(const Peer& peer, std::optional<Seconds> timeout) const;

 private:
  void note(std::string_view name, std::string_view value);
  void note_timeout(std::string_view value);

  std::string kept_;  // for each: both sizes, the name, the value
  std::size_t bytes_ = 0;
  std::size_t request_id_ = 0;  // where it is among those kept
  std::size_t request_id_size_ = 0;
  std::size_t authorization_ = 0;  // likewise
  std::size_t authorization_size_ = 0;
  int authorizations_ = 0;
  std::string_view chosen_;
  bool post_ = false;
  bool infer_ = false;
  bool grpc_ = false;
  bool compressed_ = false;
  bool odd_timeout_ = false;
  bool sampled_ = false;
  std::optional<Seconds> timeout_;
};

// As grpc-timeout has it: at most eight digits and a unit; rounded up, at least 1 µs.
std::string format_timeout(Seconds seconds);

}  // namespace lane
