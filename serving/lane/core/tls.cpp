// TLS of a server, by OpenSSL: HTTP/2 only, from TLS 1.2 on, and clients' certificates if asked
// for.
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "wire.h"

namespace lane {
namespace {

template <auto Free>
struct Freed {
  template <class Thing>
  void operator()(Thing* thing) const {
    Free(thing);
  }
};
using ContextPtr = std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>>;
using SslPtr = std::unique_ptr<SSL, Freed<SSL_free>>;
using X509Ptr = std::unique_ptr<X509, Freed<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using BioPtr = std::unique_ptr<BIO, Freed<BIO_free_all>>;
struct FreeBytes {
  void operator()(unsigned char* bytes) const { OPENSSL_free(bytes); }
};
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Freed<GENERAL_NAMES_free>>;

// Those of RFC 9113 9.2.2 for TLS 1.2: an ephemeral key exchange and an AEAD.
constexpr const char* ciphers = "ECDHE+AESGCM:ECDHE+CHACHA20";

[[noreturn]] void fail(const std::string& flag) {
  // The first of several is the cause.
  const char* reason = ERR_reason_error_string(ERR_peek_error());
  const std::string text = reason ? reason : "cannot be used";
  ERR_clear_error();
  throw std::runtime_error(flag + ": " + text);
}

BioPtr reading(const std::string& pem) {
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  if (!bio) throw std::bad_alloc();
  return bio;
}

// RFC 7301: a client that does not speak HTTP/2 is refused in the handshake.
int choose_h2(SSL*, const unsigned char** chosen, unsigned char* size, const unsigned char* offered,
              unsigned int offered_size, void*) {
  static constexpr std::array<unsigned char, 3> h2 = {2, 'h', '2'};
  unsigned char* out = nullptr;
  const int result =
      SSL_select_next_proto(&out, size, h2.data(), h2.size(), offered, offered_size);
  *chosen = out;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

void set_protocol(SSL_CTX* context) {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_cipher_list(context, ciphers);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_IGNORE_UNEXPECTED_EOF);
  // An idle connection keeps no buffers; a busy one reads whole records, and several at once.
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_alpn_select_cb(context, choose_h2, nullptr);
  // Sessions are the clients' to keep, in tickets; the context must have a name for them.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 1);
  SSL_CTX_set_session_id_context(context, reinterpret_cast<const unsigned char*>("lane"), 4);
}

// Nobody is there to be asked for a passphrase.
int no_passphrase(char*, int, int, void*) { return -1; }

// One at least.
std::vector<X509Ptr> certificates_of(const std::string& flag, const std::string& pem) {
  const BioPtr bio = reading(pem);
  std::vector<X509Ptr> found;
  while (X509* each = PEM_read_bio_X509_AUX(bio.get(), nullptr, no_passphrase, nullptr))
    found.emplace_back(each);
  // What follows the last one need not be PEM.
  const bool ended = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (found.empty() || !ended) fail(flag);
  ERR_clear_error();
  return found;
}

void load_certificate(SSL_CTX* context, const TlsOptions& options) {
  const auto chain = certificates_of("--tls-certificate", options.certificate);
  bool taken = SSL_CTX_use_certificate(context, chain.front().get()) == 1;
  for (std::size_t index = 1; index < chain.size(); ++index)
    taken = taken && SSL_CTX_add1_chain_cert(context, chain[index].get()) == 1;
  if (!taken) fail("--tls-certificate");
  const KeyPtr key(
      PEM_read_bio_PrivateKey(reading(options.key).get(), nullptr, no_passphrase, nullptr));
  // Checks that it is the certificate's, too.
  if (!key || SSL_CTX_use_PrivateKey(context, key.get()) != 1) fail("--tls-key");
}

void require_client_certificates(SSL_CTX* context, const std::string& pem) {
  X509_STORE* trusted = SSL_CTX_get_cert_store(context);
  for (const X509Ptr& each : certificates_of("--tls-client-ca", pem)) {
    if (X509_STORE_add_cert(trusted, each.get()) != 1 ||
        SSL_CTX_add_client_CA(context, each.get()) != 1)
      fail("--tls-client-ca");
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
}

// Of what a certificate says only what is text, in UTF-8. It is told percent-encoded; but a name
// with a control character would be another one for whoever logs it, or ends it at a null.
std::string text_of(const ASN1_STRING& string) {
  unsigned char* bytes = nullptr;
  const int size = ASN1_STRING_to_UTF8(&bytes, &string);
  const std::unique_ptr<unsigned char, FreeBytes> owned(bytes);
  if (size <= 0) return {};
  const bool clean = std::all_of(bytes, bytes + size, [](unsigned char each) {
    return each >= 0x20 && each != 0x7f;
  });
  return clean ? std::string(bytes, bytes + size) : std::string();
}

std::string ip_address(const ASN1_OCTET_STRING& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const int size = ASN1_STRING_length(&address);
  if (size != 4 && size != 16) return {};
  inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(&address), text.data(),
            text.size());
  return text.data();
}

std::string alternative_name(const GENERAL_NAME& name) {
  switch (name.type) {
    case GEN_DNS:
    case GEN_EMAIL:
    case GEN_URI:
      return text_of(*name.d.ia5);
    case GEN_IPADD:
      return ip_address(*name.d.iPAddress);
    default:
      return {};
  }
}

// The first of what grpcio's context.peer_identities() has: the alternative names that it knows, as
// the certificate has them in turn, or else the common name.
std::string identity_of(const X509& certificate) {
  auto* found = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr));
  const NamesPtr names(found);
  for (int index = 0; index < sk_GENERAL_NAME_num(names.get()); ++index) {
    std::string name = alternative_name(*sk_GENERAL_NAME_value(names.get(), index));
    if (!name.empty()) return name;
  }
  const X509_NAME* subject = X509_get_subject_name(&certificate);
  const int where = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (where < 0) return {};
  return text_of(*X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, where)));
}

class TlsWire : public Wire {
 public:
  TlsWire(SslPtr ssl, Descriptor socket) : socket_(std::move(socket)), ssl_(std::move(ssl)) {}

  ssize_t read(void* data, std::size_t size) override;
  ssize_t write(const void* data, std::size_t size) override;
  bool wants_write() const override { return wants_write_; }
  bool ready() const override { return ready_; }
  void finish() override;
  std::string identity() const override;
  int fd() const override { return socket_.get(); }

 private:
  bool shake_hands();
  ssize_t outcome(int result);

  Descriptor socket_;
  SslPtr ssl_;
  bool ready_ = false;
  bool wants_write_ = false;
  bool broken_ = false;
};

// Why nothing was moved.
ssize_t TlsWire::outcome(int result) {
  const int error = SSL_get_error(ssl_.get(), result);
  wants_write_ = error == SSL_ERROR_WANT_WRITE;
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return again;
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  broken_ = true;
  ERR_clear_error();
  return broken;
}

bool TlsWire::shake_hands() {
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1) {
    outcome(result);
    return false;
  }
  // Who offers no protocol at all is not asked by ALPN.
  const unsigned char* protocol = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(ssl_.get(), &protocol, &size);
  wants_write_ = false;
  broken_ = size == 0;
  ready_ = !broken_;
  return ready_;
}

// OpenSSL gives a record at a time: goes on until there is nothing, so that none is kept back
// unless the buffer is full.
ssize_t TlsWire::read(void* data, std::size_t size) {
  if (broken_) return broken;
  ERR_clear_error();
  if (!ready_ && !shake_hands()) return broken_ ? broken : again;
  std::size_t total = 0;
  while (total < size) {
    std::size_t count = 0;
    const int result =
        SSL_read_ex(ssl_.get(), static_cast<char*>(data) + total, size - total, &count);
    if (result != 1) {
      const ssize_t why = outcome(result);
      return total > 0 ? static_cast<ssize_t>(total) : why;
    }
    total += count;
  }
  return static_cast<ssize_t>(total);
}

ssize_t TlsWire::write(const void* data, std::size_t size) {
  if (broken_ || !ready_) return broken_ ? broken : again;
  ERR_clear_error();
  std::size_t count = 0;
  const int result = SSL_write_ex(ssl_.get(), data, size, &count);
  if (result == 1) return static_cast<ssize_t>(count);
  const ssize_t why = outcome(result);
  wants_write_ = false;  // the caller waits for room anyway; this is what reading waits for
  return why == 0 ? broken : why;
}

void TlsWire::finish() {
  if (ready_ && !broken_) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  ::shutdown(socket_.get(), SHUT_WR);
}

std::string TlsWire::identity() const {
  const X509Ptr certificate(SSL_get1_peer_certificate(ssl_.get()));
  return certificate ? identity_of(*certificate) : std::string();
}

}  // namespace

struct Tls::Context {
  ContextPtr context{SSL_CTX_new(TLS_server_method())};
};

Tls::Tls(const TlsOptions& options) : context_(std::make_shared<Context>()) {
  SSL_CTX* context = context_->context.get();
  if (!context) throw std::runtime_error("OpenSSL cannot be used");
  ERR_clear_error();
  set_protocol(context);
  load_certificate(context, options);
  if (!options.client_ca.empty()) require_client_certificates(context, options.client_ca);
}

Tls::~Tls() = default;

std::unique_ptr<Wire> Tls::wire(Descriptor socket) const {
  SslPtr ssl(SSL_new(context_->context.get()));
  if (!ssl || SSL_set_fd(ssl.get(), socket.get()) != 1) throw std::bad_alloc();
  SSL_set_accept_state(ssl.get());
  return std::make_unique<TlsWire>(std::move(ssl), std::move(socket));
}

}  // namespace lane
