package auth

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"software.sslmate.com/src/go-pkcs12"
)

// parseCertificate reads a certificate and its private key: in PEM form without a password, or as a PFX file (PKCS #12),
// binary or in base64 as Key Vault gives it. Errors do not repeat any of it.
//
// azidentity reads PEM. Its own reader of PFX files refuses those that OpenSSL 3 and Key Vault write today, which have
// SHA-256 in them.
func parseCertificate(data []byte, password string) ([]*x509.Certificate, crypto.PrivateKey, error) {
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		return parsePEM(data, password)
	}
	if der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(data)), "")); err == nil {
		data = der
	}
	key, first, others, err := pkcs12.DecodeChain(data, password)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		if password == "" {
			return nil, nil, errors.New("the PFX file has a password, and none was given")
		}
		return nil, nil, errors.New("the password does not open the PFX file")
	case err != nil:
		return nil, nil, errors.New("it holds no certificate with a private key: it must be a PEM or PFX file")
	}
	return append([]*x509.Certificate{first}, others...), key, nil
}

func parsePEM(data []byte, password string) ([]*x509.Certificate, crypto.PrivateKey, error) {
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, nil, errors.New("the private key in the PEM file is encrypted: make it a PFX file (openssl pkcs12 -export), " +
				"or take the encryption off")
		}
	}
	if password != "" {
		return nil, nil, errors.New("there is a password, and a PEM file has none: remove it")
	}
	certs, key, err := azidentity.ParseCertificates(data, nil)
	if err != nil {
		return nil, nil, errors.New("the PEM file must hold a certificate and its private key")
	}
	return certs, key, nil
}
