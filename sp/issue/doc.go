// Package issue is the issuing side of a VPN service at the SP's centre: the service CA with its
// root (held in memory, read from files, or with the key on a token), certificates for the
// devices of its members, revocation lists, an OCSP responder, and the change from one CA to the
// next with both in use side by side.
//
// Certificates follow docs/pki.md and are judged by internal/certs like everybody else's. The
// package keeps no records of its own: whatever is issued or revoked goes through [Recorder]
// before it leaves, so that several instances can share one database. Private keys are
// crypto.Signer: a file in a laboratory, a PKCS #11 token in production. Time and randomness are
// arguments.
//
// Sources: RFC 5280 (profile, revocation lists), RFC 9763 (RelatedCertificate), RFC 6960 and RFC
// 9654 (OCSP and its nonce), RFC 4210, section 4.4 (change of the root's key).
package issue
