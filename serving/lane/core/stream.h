// Stream: one call of a connection, from its headers to its last frame.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "clock.h"
#include "grpc.h"
#include "message_buffer.h"
#include "request_headers.h"
#include "service.h"

namespace lane {

// Bytes that wait to be sent to the client, and what ends them.
struct Output {
  std::string bytes;
  std::size_t sent = 0;
  bool whole = false;  // nothing more comes but the trailers
  std::shared_ptr<const Headers> trailers;  // null: none

  std::size_t size() const { return bytes.size() - sent; }
  void append(std::string_view more);
  std::size_t take(std::uint8_t* to, std::size_t most);
};

struct Stream {
  enum class Role {
    headers,   // being received
    body,      // a ModelInfer message is being received
    taken,     // by the service
    passed,    // on, to the upstream
    answered,  // or refused: all there is to send is known
  };

  explicit Stream(std::size_t place) : place(place) {}
  // Is a call's from now on.
  void begin(std::int32_t number, Seconds now);
  // Is no call's any more; memory stays where it was small.
  void reset();
  // Of so many bytes that the upstream took, those by which the windows were opened before.
  std::size_t consumed_before(std::size_t bytes);

  const std::size_t place;  // among its connection's
  std::int32_t id = 0;
  Role role = Role::headers;
  Seconds arrived = 0;
  Seconds deadline = std::numeric_limits<Seconds>::infinity();
  RequestHeaders headers;
  MessageBuffer body;
  std::shared_ptr<Call> call;  // where it is taken
  Output out;

  bool request_ended = false;   // the client has sent all of it
  bool response_begun = false;  // towards the client
  bool upstream_done = false;   // nothing more comes from there, nothing is to be told
  bool infer = false;           // a ModelInfer, whoever answers it
  bool counted = false;         // as a ModelInfer that was passed on, and is not answered yet

  std::size_t buffered = 0;    // of the body, in the lane's memory
  std::size_t reserved = 0;    // for all of it, in InferService::reserved
  std::size_t unsent = 0;      // of an answer of the lane's own, likewise
  std::size_t withheld = 0;    // bytes received by which the stream's window was not opened
  std::size_t unconsumed = 0;  // the same, the connection's window, too: the upstream has them
  std::size_t consumed = 0;    // passed on, but windows were opened before

  // In a list of those that must go on; when one last did, or until when its bytes were good for.
  Seconds progress = 0;
  Stream* before = nullptr;
  Stream* after = nullptr;
  class StreamList* list = nullptr;
};

// Streams that must go on, in the order in which they came. It owns none.
class StreamList {
 public:
  void append(Stream& stream);
  static void remove(Stream& stream);  // from the list it is in, if any
  Stream* front() const { return front_; }
  Stream* back() const { return back_; }

 private:
  Stream* front_ = nullptr;
  Stream* back_ = nullptr;
};

}  // namespace lane
