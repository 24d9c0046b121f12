// Makes nghttp2 sessions. See session.h.
#include "session.h"

#include <algorithm>
#include <cstdint>
#include <new>

#include "h2.h"

namespace lane {
namespace {

// A client may send so much of a stream before it hears from us: 16 MiB take few round trips.
constexpr std::uint32_t stream_window = 1u << 20;
constexpr std::size_t most_window = (1u << 31) - 1;  // RFC 9113 6.9.1
// Acknowledgements of SETTINGS and PING that wait to be sent (CVE-2019-9512, -9515).
constexpr std::size_t most_acks = 1000;
// HEADERS are followed by so many CONTINUATIONs at most (CVE-2024-28182).
constexpr std::size_t most_continuations = 8;
// Of a response's headers: no less than an upstream's may have. Those beyond, nghttp2
// would keep back without a word.
constexpr std::size_t most_sent_header_bytes = 1024 * 1024;
// nghttp2's own limit of resets is behind ours: it counts some that we cannot see.
constexpr double reset_slack = 2;

struct FreeOption {
  void operator()(nghttp2_option* option) const { nghttp2_option_del(option); }
};
using Option = std::unique_ptr<nghttp2_option, FreeOption>;

struct FreeCallbacks {
  void operator()(nghttp2_session_callbacks* all) const { nghttp2_session_callbacks_del(all); }
};
using Callbacks = std::unique_ptr<nghttp2_session_callbacks, FreeCallbacks>;

// Newer than some nghttp2 of the same version, as distributions patch it in: taken where it is.
// Where it is not, nghttp2 is older than the limit, and the header limit bounds what is kept.
template <typename T>
auto limit_continuations(T* option, std::size_t most)
    -> decltype(nghttp2_option_set_max_continuations(option, most)) {
  nghttp2_option_set_max_continuations(option, most);
}
[[maybe_unused]] void limit_continuations(...) {}

template <typename T>
auto limit_resets(T* option, const Limits& limits)
    -> decltype(nghttp2_option_set_stream_reset_rate_limit(option, 0, 0)) {
  const auto times = [](double value) {
    return static_cast<std::uint64_t>(value * reset_slack + 1);
  };
  nghttp2_option_set_stream_reset_rate_limit(option, times(limits.resets_burst),
                                             times(limits.resets_per_second));
}
[[maybe_unused]] void limit_resets(...) {}

Option make_option(const Limits& limits) {
  nghttp2_option* raw = nullptr;
  if (nghttp2_option_new(&raw)) throw std::bad_alloc();
  Option option(raw);
  nghttp2_option_set_no_auto_window_update(raw, 1);
  nghttp2_option_set_no_closed_streams(raw, 1);
  nghttp2_option_set_max_outbound_ack(raw, most_acks);
  nghttp2_option_set_max_send_header_block_length(raw, most_sent_header_bytes);
  allow_outer_spaces(raw);
  limit_continuations(raw, most_continuations);
  limit_resets(raw, limits);
  return option;
}

Callbacks make_callbacks(const SessionEvents& events) {
  nghttp2_session_callbacks* raw = nullptr;
  if (nghttp2_session_callbacks_new(&raw)) throw std::bad_alloc();
  Callbacks callbacks(raw);
  nghttp2_session_callbacks_set_on_begin_headers_callback(raw, events.begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(raw, events.header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(raw, events.frame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(raw, events.data);
  nghttp2_session_callbacks_set_on_frame_send_callback(raw, events.sent);
  nghttp2_session_callbacks_set_on_stream_close_callback(raw, events.closed);
  return callbacks;
}

void announce(nghttp2_session* session, const Limits& limits) {
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits.max_streams},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, stream_window},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<std::uint32_t>(limits.max_header_bytes)},
      // Priorities of RFC 7540 are a tree to keep for each stream, and no gRPC client sends any.
      {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
  };
  nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings));
  const std::size_t window =
      std::clamp<std::size_t>(limits.max_buffered_bytes, stream_window, most_window);
  nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                        static_cast<std::int32_t>(window));
}

}  // namespace

Session make_session(const Limits& limits, const SessionEvents& events, void* owner) {
  const Option option = make_option(limits);
  const Callbacks callbacks = make_callbacks(events);
  nghttp2_session* raw = nullptr;
  if (nghttp2_session_server_new2(&raw, callbacks.get(), owner, option.get()))
    throw std::bad_alloc();
  Session session(raw);
  announce(raw, limits);
  return session;
}

nghttp2_nv lasting(std::string_view name, std::string_view value) {
  // nghttp2 takes pointers to bytes that may change, and with these flags never changes them.
  const auto bytes = [](std::string_view text) {
    return reinterpret_cast<std::uint8_t*>(const_cast<char*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

std::vector<nghttp2_nv> lasting(const Headers& headers) {
  std::vector<nghttp2_nv> all;
  all.reserve(headers.size());
  for (const Header& header : headers) all.push_back(lasting(header.name, header.value));
  return all;
}

}  // namespace lane
