// Protocol buffers on the wire: how to read a message's fields, and how to write them.
//
// Knows no message. https://protobuf.dev/programming-guides/encoding/
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lane {

// Whether it is UTF-8 as protobuf takes it (RFC 3629): no surrogates, nothing longer than need be.
bool valid_utf8(std::string_view text);

// A field's number and wire type in one, as it stands before the field.
constexpr std::uint32_t varint_tag(std::uint32_t field) { return field << 3; }
constexpr std::uint32_t fixed64_tag(std::uint32_t field) { return field << 3 | 1; }
constexpr std::uint32_t bytes_tag(std::uint32_t field) { return field << 3 | 2; }

// Reads a message field by field. Each function is false where the bytes are malformed; what it has
// read is then of no use. Views are of the message's bytes.
class Reader {
 public:
  explicit Reader(std::string_view message)
      : at_(message.data()), end_(message.data() + message.size()) {}

  bool done() const { return at_ == end_; }
  bool tag(std::uint32_t& tag);
  bool varint(std::uint64_t& value);
  // Of a `bytes` field, a message, or packed numbers.
  bool bytes(std::string_view& value);
  // Of a `string` field, which must be UTF-8.
  bool text(std::string_view& value) { return bytes(value) && valid_utf8(value); }
  // A field that nobody knows; false for groups, which proto3 has none of.
  bool skip(std::uint32_t tag);

 private:
  bool varint(std::uint64_t& value, int most_bytes);

  const char* at_;
  const char* end_;
};

inline std::size_t varint_bytes(std::uint64_t value) {
  std::size_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}

// What a Writer would write, counted: so that a message is laid out by one function for both. Tags
// are of fields up to 15, a byte each.
class Sizer {
 public:
  void varint(std::uint64_t value) { size_ += varint_bytes(value); }
  void begin(std::uint32_t, std::size_t bytes) { size_ += 1 + varint_bytes(bytes); }
  void bytes(std::uint32_t tag, std::string_view value) {
    begin(tag, value.size());
    size_ += value.size();
  }
  // A `string` that is empty is not sent.
  void text(std::uint32_t tag, std::string_view value) {
    if (!value.empty()) bytes(tag, value);
  }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_ = 0;
};

// Appends fields to a string that has room for them.
class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_.push_back(static_cast<char>(value | 0x80));
    out_.push_back(static_cast<char>(value));
  }
  // Tag and length of what follows.
  void begin(std::uint32_t tag, std::size_t bytes) {
    varint(tag);
    varint(bytes);
  }
  void bytes(std::uint32_t tag, std::string_view value) {
    begin(tag, value.size());
    out_.append(value);
  }
  void text(std::uint32_t tag, std::string_view value) {
    if (!value.empty()) bytes(tag, value);
  }

 private:
  std::string& out_;
};

}  // namespace lane
