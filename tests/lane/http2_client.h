// An HTTP/2 client in memory, over nghttp2: it sends what a test asks for, well-behaved or not, and
// remembers what came of each stream.
#pragma once

#include <doctest/doctest.h>
#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "grpc.h"

namespace lane {

// What a client got of one stream.
struct Received {
  std::map<std::string, std::string> headers;
  std::string body;
  std::map<std::string, std::string> trailers;
  bool headers_came = false;
  bool ended = false;
  std::optional<std::uint32_t> reset;
};

// What it sends as a request's body, bit by bit.
struct Upload {
  std::string bytes;
  std::size_t sent = 0;
  bool ends = true;
};

inline Headers infer_headers() {
  return {{":method", "POST"},
          {":scheme", "http"},
          {":path", "/inference.GRPCInferenceService/ModelInfer"},
          {":authority", "localhost"},
          {"content-type", "application/grpc"},
          {"te", "trailers"},
          {"user-agent", "grpc-python/1.80.0"}};
}

inline Headers with(Headers headers, const std::string& name, const std::string& value) {
  for (Header& header : headers) {
    if (header.name != name) continue;
    header.value = value;
    return headers;
  }
  headers.push_back({name, value});
  return headers;
}

class Http2Client {
 public:
  struct Options {
    bool opens_windows = true;    // as it reads; else not at all
    std::uint32_t window = 65535;  // of a stream, for responses
    bool answers_pings = true;
  };

  Http2Client() : Http2Client(Options()) {}
  explicit Http2Client(const Options& options) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_option* option = nullptr;
    nghttp2_option_new(&option);
    nghttp2_option_set_no_auto_window_update(option, !options.opens_windows);
    nghttp2_option_set_no_auto_ping_ack(option, !options.answers_pings);
    nghttp2_option_set_max_send_header_block_length(option, 1 << 20);
    nghttp2_session* session = nullptr;
    nghttp2_session_client_new2(&session, callbacks, this, option);
    session_.reset(session);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, options.window}};
    nghttp2_submit_settings(get(), NGHTTP2_FLAG_NONE, settings, 1);
  }

  nghttp2_session* get() const { return session_.get(); }

  // Begins a request with part of its body, or all of it.
  std::int32_t request(const Headers& headers, std::string body, bool ends = true) {
    std::vector<nghttp2_nv> fields;
    for (const Header& header : headers) fields.push_back(field(header));
    auto upload = std::make_unique<Upload>();
    upload->bytes = std::move(body);
    upload->ends = ends;
    nghttp2_data_provider provider{};
    provider.source.ptr = upload.get();
    provider.read_callback = read;
    const std::int32_t id = nghttp2_submit_request(get(), nullptr, fields.data(), fields.size(),
                                                   &provider, nullptr);
    REQUIRE(id > 0);
    uploads_[id] = std::move(upload);
    return id;
  }
  // A ModelInfer call of a message.
  std::int32_t infer(const std::string& message, const Headers& headers = infer_headers()) {
    return request(headers, frame_prefix(message.size()) + message);
  }
  void go_on(std::int32_t id, const std::string& bytes, bool ends = true) {
    Upload& upload = *uploads_.at(id);
    upload.bytes += bytes;
    upload.ends = ends;
    nghttp2_session_resume_data(get(), id);
  }
  void reset(std::int32_t id) {
    nghttp2_submit_rst_stream(get(), NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
  }
  void ping() { nghttp2_submit_ping(get(), NGHTTP2_FLAG_NONE, nullptr); }

  // All that it has to send.
  std::string output() {
    std::string out;
    const std::uint8_t* bytes = nullptr;
    for (ssize_t size; (size = nghttp2_session_mem_send(get(), &bytes)) > 0;) {
      out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    }
    return out;
  }
  void input(const std::string& bytes) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const ssize_t read = nghttp2_session_mem_recv(get(), data, bytes.size());
    REQUIRE(read == static_cast<ssize_t>(bytes.size()));
  }

  const Received& operator[](std::int32_t id) { return streams_[id]; }
  std::size_t unsent(std::int32_t id) const {
    const Upload& upload = *uploads_.at(id);
    return upload.bytes.size() - upload.sent;
  }

  std::vector<std::pair<std::uint32_t, std::string>> goaways;  // error, text
  std::vector<std::int32_t> last_streams;                      // of those
  int pings = 0;
  int ping_answers = 0;
  std::map<int, std::uint32_t> settings;

 private:
  static nghttp2_nv field(const Header& header) {
    const auto bytes = [](const std::string& text) {
      return reinterpret_cast<std::uint8_t*>(const_cast<char*>(text.data()));
    };
    return {bytes(header.name), bytes(header.value), header.name.size(), header.value.size(),
            NGHTTP2_NV_FLAG_NONE};
  }
  static std::string string(const std::uint8_t* bytes, std::size_t size) {
    return {reinterpret_cast<const char*>(bytes), size};
  }
  static Http2Client& of(void* self) { return *static_cast<Http2Client*>(self); }

  static ssize_t read(nghttp2_session*, std::int32_t, std::uint8_t* to, std::size_t most,
                      std::uint32_t* flags, nghttp2_data_source* source, void*) {
    Upload& upload = *static_cast<Upload*>(source->ptr);
    const std::size_t size = upload.bytes.copy(reinterpret_cast<char*>(to), most, upload.sent);
    upload.sent += size;
    const bool all = upload.sent == upload.bytes.size();
    if (all && upload.ends) *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (size == 0 && !(all && upload.ends)) return NGHTTP2_ERR_DEFERRED;
    return static_cast<ssize_t>(size);
  }
  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                       std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                       std::uint8_t, void* self) {
    Received& stream = of(self).streams_[frame->hd.stream_id];
    auto& fields = stream.headers_came ? stream.trailers : stream.headers;
    fields[string(name, name_size)] = string(value, value_size);
    return 0;
  }
  static int on_data(nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* bytes,
                     std::size_t size, void* self) {
    of(self).streams_[id].body.append(string(bytes, size));
    return 0;
  }
  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* self) {
    of(self).note(*frame);
    return 0;
  }
  void note(const nghttp2_frame& frame) {
    const bool ack = frame.hd.flags & NGHTTP2_FLAG_ACK;
    if (frame.hd.type == NGHTTP2_PING) ++(ack ? ping_answers : pings);
    if (frame.hd.type == NGHTTP2_GOAWAY) {
      goaways.emplace_back(frame.goaway.error_code,
                           string(frame.goaway.opaque_data, frame.goaway.opaque_data_len));
      last_streams.push_back(frame.goaway.last_stream_id);
    }
    for (std::size_t i = 0; frame.hd.type == NGHTTP2_SETTINGS && i < frame.settings.niv; ++i) {
      settings[frame.settings.iv[i].settings_id] = frame.settings.iv[i].value;
    }
    if (frame.hd.stream_id == 0) return;
    Received& stream = streams_[frame.hd.stream_id];
    if (frame.hd.type == NGHTTP2_HEADERS) stream.headers_came = true;
    if (frame.hd.type == NGHTTP2_RST_STREAM) stream.reset = frame.rst_stream.error_code;
    const bool ends = frame.hd.type == NGHTTP2_HEADERS || frame.hd.type == NGHTTP2_DATA;
    if (ends && (frame.hd.flags & NGHTTP2_FLAG_END_STREAM)) stream.ended = true;
  }

  struct Free {
    void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
  };
  std::map<std::int32_t, std::unique_ptr<Upload>> uploads_;
  std::map<std::int32_t, Received> streams_;
  std::unique_ptr<nghttp2_session, Free> session_;
};

}  // namespace lane
