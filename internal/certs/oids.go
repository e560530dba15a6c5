package certs

import "encoding/asn1"

// Object identifiers of the profile.
var (
	// EKUIPsecIKE is id-kp-ipsecIKE (RFC 4945, section 5.1.3.12): the purpose of device and
	// service certificates.
	EKUIPsecIKE = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}

	// EKUClientAuth is id-kp-clientAuth (RFC 5280, section 4.2.1.12). Device certificates carry
	// it too, because they authenticate the device to the enrolment server by TLS.
	EKUClientAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}

	// EKUPolicySigning marks the signer of policy files. The arc 1.3.6.1.4.1.32473 is the
	// private enterprise number that RFC 5612 reserves for documentation; it is used until one
	// is assigned to this product (docs/pki.md).
	EKUPolicySigning = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 1}

	// OIDRelatedCertificate is id-pe-relatedCert (RFC 9763): the certificate extension.
	OIDRelatedCertificate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 36}

	// OIDRelatedCertRequest is id-aa-relatedCertRequest (RFC 9763): the CSR attribute.
	OIDRelatedCertRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 60}

	// OIDChallengePassword is challengePassword (RFC 2985, section 5.4.1): the CSR attribute in which
	// the channel binding of an enrolment travels (RFC 7030, section 3.5).
	OIDChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
)

var (
	oidEKUAny             = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
	oidExtEKU             = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidExtSAN             = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidExtKeyUsage        = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidExtensionRequest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

	oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}

	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidECDSAWithSHA512 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}
	oidRSAWithSHA256   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidEd25519         = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// Bounds on what a peer may make us look at. They are generous for any real hierarchy and small
// enough that refusing costs less than sending.
const (
	MaxCertificateBytes = 16 << 10 // DER of one certificate, octets
	MaxIntermediates    = 8        // certificates sent beside the leaf
	MaxChain            = 6        // leaf and anchor included
	MaxCRLBytes         = 8 << 20  // DER of one revocation list, octets
	MaxCSRBytes         = 16 << 10 // DER of one certification request, octets

	// MaxSignatureChecks bounds the signature verifications of one path search, so that many
	// intermediates with equal names do not multiply.
	MaxSignatureChecks = 32
)
