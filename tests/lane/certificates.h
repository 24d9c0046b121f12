// A CA and the certificates that it signs, made for a test and gone with it.
#pragma once

#include <doctest/doctest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "wire.h"

namespace lane {

class Directory {
 public:
  Directory() {
    std::string pattern = std::filesystem::temp_directory_path() / "lane-XXXXXX";
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

struct FreeCertificate {
  void operator()(X509* each) const { X509_free(each); }
  void operator()(EVP_PKEY* each) const { EVP_PKEY_free(each); }
  void operator()(X509_EXTENSION* each) const { X509_EXTENSION_free(each); }
  void operator()(std::FILE* each) const { std::fclose(each); }
};
using CertificatePtr = std::unique_ptr<X509, FreeCertificate>;
using KeyPtr = std::unique_ptr<EVP_PKEY, FreeCertificate>;

class Authority {
 public:
  explicit Authority(const Directory& directory)
      : directory_(directory), key_(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256")) {
    certificate_ = make("ca", "", *key_, true);
    write(file(), *certificate_);
  }
  std::string file() const { return directory_.file("ca.pem"); }
  // Writes NAME.pem, for the names such as "DNS:localhost", and NAME.key; where NAME.pem is. The
  // common name is NAME, too, unless it is given, in UTF-8.
  std::string sign(const std::string& name, const std::string& names) const {
    return sign(name, names, name);
  }
  std::string sign(const std::string& name, const std::string& names,
                   const std::string& common_name) const {
    const KeyPtr key(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"));
    write(directory_.file(name + ".pem"), *make(common_name, names, *key, false));
    const std::unique_ptr<std::FILE, FreeCertificate> file(
        std::fopen(directory_.file(name + ".key").c_str(), "w"));
    REQUIRE(PEM_write_PrivateKey(file.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr));
    return directory_.file(name + ".pem");
  }
  // Of a server by the certificate that it signs as `name`, which takes clients of this CA only, or
  // all clients.
  TlsOptions serving(const std::string& name, bool clients = false) const {
    const std::string certificate = content(sign(name, "DNS:localhost"));
    return {certificate, content(directory_.file(name + ".key")), clients ? content(file()) : ""};
  }

 private:
  CertificatePtr make(const std::string& name, const std::string& names, EVP_PKEY& key,
                      bool ca) const {
    CertificatePtr made(X509_new());
    X509_set_version(made.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made.get()), ++serial_);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made.get()), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509* issuer = ca ? made.get() : certificate_.get();
    X509_set_issuer_name(made.get(), X509_get_subject_name(issuer));
    X509_set_pubkey(made.get(), &key);
    if (ca) extend(*made, NID_basic_constraints, "critical,CA:TRUE");
    if (!names.empty()) extend(*made, NID_subject_alt_name, names);
    REQUIRE(X509_sign(made.get(), key_.get(), EVP_sha256()) > 0);
    return made;
  }
  static void extend(X509& certificate, int kind, const std::string& text) {
    const std::unique_ptr<X509_EXTENSION, FreeCertificate> extension(
        X509V3_EXT_conf_nid(nullptr, nullptr, kind, text.c_str()));
    REQUIRE(X509_add_ext(&certificate, extension.get(), -1) == 1);
  }
  static void write(const std::string& path, X509& certificate) {
    const std::unique_ptr<std::FILE, FreeCertificate> file(std::fopen(path.c_str(), "w"));
    REQUIRE(PEM_write_X509(file.get(), &certificate) == 1);
  }

  const Directory& directory_;
  KeyPtr key_;
  CertificatePtr certificate_;
  mutable long serial_ = 0;
};

}  // namespace lane
