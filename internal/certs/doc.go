// Package certs is Wardgate's certificate profile: what a device certificate, a service
// certificate and a policy signer's certificate must look like, how a chain of them is judged,
// and how a service certificate is bound to the device that it was issued for.
//
// The package does no I/O and reads no clock: certificates, revocation lists and the time come
// in as arguments, a verdict goes out. Every refusal is an [*Error] whose [Class] is stable (it
// is what the audit record and the tests look at) and whose text names what was expected, what
// came, and what to do about it. Text that comes out of a certificate is escaped and shortened
// before it enters a message, because a peer that is not yet authenticated chose it.
//
// Sources: RFC 5280 (profile and path validation), RFC 4945 (certificates in IKE), RFC 9763
// (RelatedCertificate and relatedCertRequest), RFC 2986 (PKCS #10).
package certs
