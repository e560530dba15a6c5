package suite

import "slices"

// Announcement is one authentication method as SUPPORTED_AUTH_METHODS names it (RFC 9593).
type Announcement struct {
	Method    uint8
	Algorithm []byte // AlgorithmIdentifier in DER, with AuthDigitalSignature
}

// SignatureAnnouncements returns kinds of signature that VerifySignature accepts, those that we
// prefer first: one for each key that CheckPublicKey takes. Of RSA, SHA-256 alone is named, which is
// accepted with others: each name of RSASSA-PSS takes 67 octets, and they go into IKE_SA_INIT, which
// has no fragments. PKCS #1 v1.5 is for tokens that have nothing else.
func SignatureAnnouncements() []Announcement {
	var list []Announcement
	add := func(kind sigKind, hashes ...uint16) {
		for _, h := range hashes {
			list = append(list, Announcement{AuthDigitalSignature, []byte(canonicalIDs[sigAlg{kind, h}])})
		}
	}
	sha2 := []uint16{HashSHA256, HashSHA384, HashSHA512}
	add(sigECDSA, sha2...)
	add(sigEd25519, HashIdentity)
	add(sigPSS, HashSHA256)
	add(sigPKCS1, HashSHA256)
	for _, m := range []uint8{AuthECDSA256, AuthECDSA384, AuthECDSA521} {
		list = append(list, Announcement{Method: m})
	}
	return list
}

// Announced returns those of the schemes that a peer announced, in our order; all of them when it
// announced none: then it may know more than it says, and without trying there is no connection in
// any case.
func Announced(schemes []SignatureScheme, announced []Announcement) []SignatureScheme {
	fits := func(s SignatureScheme) bool {
		return slices.ContainsFunc(announced, func(a Announcement) bool {
			if a.Method != s.method {
				return false
			}
			alg, known := algorithmIDs[string(a.Algorithm)]
			return a.Method != AuthDigitalSignature || len(a.Algorithm) == 0 || known && alg == s.alg
		})
	}
	var out []SignatureScheme
	for _, s := range schemes {
		if fits(s) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return schemes
	}
	return out
}
