// An nghttp2 server session with the lane's settings and bounds, and RAII for nghttp2's objects.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "connection.h"

namespace lane {

struct FreeSession {
  void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
};
using Session = std::unique_ptr<nghttp2_session, FreeSession>;

// What a session calls; `owner` is given to each.
struct SessionEvents {
  nghttp2_on_begin_headers_callback begin_headers;
  nghttp2_on_header_callback header;
  nghttp2_on_frame_recv_callback frame;
  nghttp2_on_data_chunk_recv_callback data;
  nghttp2_on_frame_send_callback sent;
  nghttp2_on_stream_close_callback closed;
};

// With its SETTINGS queued. Throws std::bad_alloc.
Session make_session(const Limits& limits, const SessionEvents& events, void* owner);

// A header whose texts outlive the frame; nothing is copied.
nghttp2_nv lasting(std::string_view name, std::string_view value);
std::vector<nghttp2_nv> lasting(const Headers& headers);

}  // namespace lane
