// gRPC's part of HTTP/2: what its header fields and frames look like.
#include "grpc.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace lane {
namespace {

constexpr std::size_t kPrefixBytes = 5;
constexpr std::size_t kMostTimeoutDigits = 8;  // of the protocol
// Longer than anybody waits, and a whole number that a double holds.
constexpr double kMostMilliseconds = 1e15;

// A unit in seconds: `times` of them, or a `part` of one, so that the result is rounded once.
struct Unit {
  double times;
  double part;
};

std::optional<Unit> unit_of(char unit) {
  switch (unit) {
    case 'H': return Unit{3600, 1};
    case 'M': return Unit{60, 1};
    case 'S': return Unit{1, 1};
    case 'm': return Unit{1, 1e3};
    case 'u': return Unit{1, 1e6};
    case 'n': return Unit{1, 1e9};
    default: return std::nullopt;
  }
}

// As printf's %.3f, whatever the locale; slow, as it is exact for any number.
void append_exactly(std::string& out, double value) {
  std::array<char, 330> buffer;  // the largest double has 309 digits before the point
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                          std::chars_format::fixed, 3);
  if (error == std::errc()) out.append(buffer.data(), end);
}

// f"{seconds * 1e3:.3f}", by whole thousandths wherever these cannot have been rounded wrongly.
void append_milliseconds(std::string& out, Seconds seconds) {
  const double value = seconds * 1e3;
  if (!(value > 0 && value < 1e6)) return append_exactly(out, value);
  const double thousandths = value * 1e3;
  auto whole = static_cast<std::uint64_t>(thousandths);
  const double rest = thousandths - static_cast<double>(whole);
  if (std::abs(rest - 0.5) < 1e-6) return append_exactly(out, value);
  if (rest > 0.5) ++whole;
  std::array<char, 24> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), whole / 1000).ptr;
  out.append(buffer.data(), end);
  const auto digit = [&](std::uint64_t unit) { return static_cast<char>('0' + whole / unit % 10); };
  out.append({'.', digit(100), digit(10), digit(1)});
}

std::string server_timing(const Stages& stages, Seconds queue_seconds) {
  std::string text;
  text.reserve(96);
  append_milliseconds(text.append("queue;dur="), queue_seconds);
  append_milliseconds(text.append(", batch;dur="), stages.compute_input);
  append_milliseconds(text.append(", compute;dur="), stages.compute_infer);
  append_milliseconds(text.append(", split;dur="), stages.compute_output);
  return text;
}

}  // namespace

std::optional<Seconds> parse_timeout(std::string_view text) {
  if (text.size() < 2 || text.size() > kMostTimeoutDigits + 1) return std::nullopt;
  const std::optional<Unit> unit = unit_of(text.back());
  const char* end = text.data() + text.size() - 1;
  std::uint32_t value = 0;
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (!unit || error != std::errc() || stopped != end) return std::nullopt;
  return value * unit->times / unit->part;
}

std::string percent_encoded(std::string_view text) {
  constexpr std::string_view hex = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (const char character : text) {
    if (character >= ' ' && character <= '~' && character != '%') {
      encoded.push_back(character);
      continue;
    }
    const auto byte = static_cast<unsigned char>(character);
    encoded.append({'%', hex[byte >> 4], hex[byte & 15]});
  }
  return encoded;
}

std::string frame_prefix(std::size_t message_bytes) {
  std::string prefix(kPrefixBytes, '\0');  // short enough to need no allocation
  for (std::size_t index = kPrefixBytes - 1; index > 0; --index, message_bytes >>= 8) {
    prefix[index] = static_cast<char>(message_bytes & 0xff);
  }
  return prefix;
}

Framing framing(std::string_view body, std::size_t max_message_bytes, bool ended) {
  if (!body.empty() && body[0] == 1) return Framing::compressed;
  if (!body.empty() && body[0] != 0) return Framing::malformed;
  const Framing partial = ended ? Framing::malformed : Framing::incomplete;
  if (body.size() < kPrefixBytes) return partial;
  std::size_t message_bytes = 0;
  for (std::size_t index = 1; index < kPrefixBytes; ++index) {
    message_bytes = message_bytes << 8 | static_cast<unsigned char>(body[index]);
  }
  if (message_bytes > max_message_bytes) return Framing::too_large;
  const std::size_t received = body.size() - kPrefixBytes;
  if (received > message_bytes) return Framing::malformed;
  return received == message_bytes && ended ? Framing::complete : partial;
}

Headers answer_trailers(const Stages& stages, Seconds queue_seconds, const std::string& version) {
  Headers headers;
  headers.reserve(4);
  headers.push_back({"grpc-status", "0"});
  headers.push_back({"server-timing", server_timing(stages, queue_seconds)});
  headers.push_back({"batch-size", std::to_string(stages.rows)});
  headers.push_back({"model-version", version});
  return headers;
}

const std::shared_ptr<const Headers>& AnswerTrailers::of(const Stages& stages,
                                                         Seconds queue_seconds,
                                                         const std::string& version) {
  const bool same = stages == stages_ && queue_seconds == queue_seconds_ && version == version_;
  if (headers_ && same) return headers_;
  headers_ = std::make_shared<Headers>(answer_trailers(stages, queue_seconds, version));
  stages_ = stages;
  queue_seconds_ = queue_seconds;
  version_ = version;
  return headers_;
}

Headers refusal_trailers(const Refusal& refusal) {
  Headers headers{{"grpc-status", std::to_string(static_cast<int>(refusal.code))}};
  if (!refusal.details.empty()) {
    headers.push_back({"grpc-message", percent_encoded(refusal.details)});
  }
  if (refusal.retry_after >= 0) {
    // https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
    const double wait = std::min(std::ceil(refusal.retry_after * 1e3), kMostMilliseconds);
    headers.push_back({"grpc-retry-pushback-ms", std::to_string(static_cast<std::int64_t>(wait))});
  }
  return headers;
}

}  // namespace lane
