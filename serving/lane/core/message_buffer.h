// MessageBuffer: the one gRPC message of a call's body, as it arrives.
//
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, Length-Prefixed-Message
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lane {

class MessageBuffer {
 public:
  enum class Arrived {
    part,
    whole,
    too_large,  // it says so itself; no more of it is kept
    other,      // compressed, or more than one message: not for the lane
  };

  void clear();
  Arrived add(std::string_view bytes, std::size_t most);
  // One message, all of it.
  bool whole() const { return prefix_size_ == prefix_bytes && message_.size() == announced(); }
  // What the prefix says; 0 without one.
  std::uint32_t announced() const;
  // Bytes that are kept, prefix included.
  std::size_t size() const { return prefix_size_ + message_.size(); }
  // Without its prefix. It is empty then.
  std::string take_message();
  // All that came. It is empty then.
  std::string take_all();

 private:
  static constexpr std::size_t prefix_bytes = 5;  // the flag, the length

  std::array<char, prefix_bytes> prefix_{};
  std::size_t prefix_size_ = 0;
  std::string message_;
};

}  // namespace lane
