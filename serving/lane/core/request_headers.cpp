// Headers of a call: what is noted of them, and how they are passed on. See request_headers.h.
#include "request_headers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "connection.h"
#include "peer_metadata.h"

namespace lane {
namespace {

constexpr std::string_view infer_path = "/inference.GRPCInferenceService/ModelInfer";
constexpr std::size_t overhead = 32;           // RFC 9113 6.5.2
constexpr std::size_t most_kept_memory = 4096;  // from one call to the next

// grpc-timeout's largest number. Longer than this many hours is for ever to everybody.
constexpr double most_digits = 99'999'999;

struct Sizes {
  std::uint32_t name;
  std::uint32_t value;
};

bool is_private(std::string_view name) {
  return name.substr(0, private_metadata_prefix.size()) == private_metadata_prefix;
}

// VERSION-TRACE-PARENT-FLAGS in hexadecimal digits, of which the last flag is asked for.
bool is_sampled(std::string_view traceparent) {
  constexpr std::size_t last_flag = 54;
  if (traceparent.size() <= last_flag) return false;
  return std::string_view("13579bdf").find(traceparent[last_flag]) != std::string_view::npos;
}

}  // namespace

void RequestHeaders::clear() {
  std::string kept = std::move(kept_);
  *this = RequestHeaders();
  if (kept.capacity() > most_kept_memory) return;
  kept.clear();
  kept_ = std::move(kept);
}

void RequestHeaders::add(std::string_view name, std::string_view value, std::size_t most) {
  bytes_ += name.size() + value.size() + overhead;
  if (bytes_ > most) return;
  Sizes sizes{static_cast<std::uint32_t>(name.size()), static_cast<std::uint32_t>(value.size())};
  kept_.append(reinterpret_cast<const char*>(&sizes), sizeof sizes);
  kept_.append(name);
  kept_.append(value);
  note(name, value);
}

void RequestHeaders::note(std::string_view name, std::string_view value) {
  if (name == ":method") {
    post_ = value == "POST";
  } else if (name == ":path") {
    infer_ = value == infer_path;
  } else if (name == "content-type") {
    grpc_ = value == "application/grpc" || value == "application/grpc+proto";
  } else if (name == "grpc-encoding") {
    compressed_ = value != "identity";
  } else if (name == "grpc-timeout") {
    note_timeout(value);
  } else if (name == "traceparent") {
    sampled_ = is_sampled(value);
  } else if (name == "x-request-id") {
    request_id_ = kept_.size() - value.size();
    request_id_size_ = value.size();
  } else if (name == "authorization") {
    authorization_ = kept_.size() - value.size();
    authorization_size_ = value.size();
    ++authorizations_;
  }
}

std::string_view RequestHeaders::request_id() const {
  return std::string_view(kept_).substr(request_id_, request_id_size_);
}

std::string_view RequestHeaders::authorization() const {
  if (authorizations_ != 1) return {};
  return std::string_view(kept_).substr(authorization_, authorization_size_);
}

void RequestHeaders::note_timeout(std::string_view value) {
  timeout_ = parse_timeout(value);
  if (!timeout_) odd_timeout_ = true;
}

Headers RequestHeaders::passed_on(const Peer& peer, std::optional<Seconds> timeout) const {
  Headers headers;
  std::string_view rest = kept_;
  while (!rest.empty()) {
    Sizes sizes;
    std::memcpy(&sizes, rest.data(), sizeof sizes);
    rest.remove_prefix(sizeof sizes);
    const std::string_view name = rest.substr(0, sizes.name);
    const std::string_view value = rest.substr(sizes.name, sizes.value);
    rest.remove_prefix(sizes.name + sizes.value);
    if (is_private(name)) continue;
    const bool replaced = timeout && name == "grpc-timeout";
    headers.push_back(
        {std::string(name), replaced ? format_timeout(*timeout) : std::string(value)});
  }
  headers.push_back({std::string(peer_address_metadata), peer.address});
  if (!peer.identity.empty()) {
    headers.push_back({std::string(peer_identity_metadata), percent_encoded(peer.identity)});
  }
  if (!chosen_.empty()) headers.push_back({std::string(chosen_metadata), std::string(chosen_)});
  return headers;
}

std::string format_timeout(Seconds seconds) {
  constexpr std::pair<double, char> units[] = {{1e-6, 'u'}, {1e-3, 'm'}, {1, 'S'}, {3600, 'H'}};
  for (const auto& [unit, letter] : units) {
    const double count = std::max(1.0, std::ceil(seconds / unit));
    if (count <= most_digits) return std::to_string(static_cast<std::int64_t>(count)) + letter;
  }
  return std::to_string(static_cast<std::int64_t>(most_digits)) + 'H';
}

}  // namespace lane
