package suite

import (
	"crypto"
	"encoding/asn1"
	"encoding/hex"
)

// sigKind is a signature algorithm.
type sigKind uint8

const (
	sigECDSA sigKind = iota + 1
	sigPSS
	sigPKCS1
	sigEd25519
)

func (k sigKind) String() string {
	switch k {
	case sigECDSA:
		return "ECDSA"
	case sigPSS:
		return "RSASSA-PSS"
	case sigPKCS1:
		return "RSASSA-PKCS1-v1_5"
	case sigEd25519:
		return "Ed25519"
	}
	return "unknown"
}

// sigAlg is what an AlgorithmIdentifier of RFC 7427 says.
type sigAlg struct {
	kind sigKind
	hash uint16 // HashSHA256, …
}

// oidPrefix are DER object identifiers, tag and length included.
const (
	derNull      = "0500"
	derSHA2      = "06096086480165030402" // one octet follows: 01 SHA-256, 02 SHA-384, 03 SHA-512
	derPKCS1     = "06092a864886f70d0101" // one octet follows
	derECDSASHA2 = "06082a8648ce3d0403"   // one octet follows
	derEd25519   = "06032b6570"
)

// algorithmIDs maps every encoding that is accepted to its meaning, and canonicalIDs the other
// way round to the one that is sent. RFC 7427, section 3 suggests exactly this: compare the
// object as a blob with the known ones, so that nothing needs to be parsed that an attacker
// wrote. Where DER leaves a choice, both encodings are rows: parameters NULL or absent (RFC
// 4055, section 2.1 and section 5), trailerField 1 spelt out as in RFC 7427, appendix A.4.3 or
// left out as X.690 has it for a default. RSASSA-PSS needs the same hash in both places and a
// salt as long as the hash (FIPS 186-5, section 5.4 allows no longer one).
var algorithmIDs, canonicalIDs = buildAlgorithmIDs()

func buildAlgorithmIDs() (map[string]sigAlg, map[sigAlg]string) {
	accepted, canonical := make(map[string]sigAlg), make(map[sigAlg]string)
	add := func(h string, a sigAlg) {
		der := sequence(h)
		accepted[string(der)] = a
		if _, ok := canonical[a]; !ok { // the first one added
			canonical[a] = string(der)
		}
	}
	add(derEd25519, sigAlg{sigEd25519, HashIdentity})
	for _, h := range []struct {
		id               uint16
		sha2, rsa, ecdsa string
		salt             byte
	}{
		{HashSHA256, "01", "0b", "02", 32},
		{HashSHA384, "02", "0c", "03", 48},
		{HashSHA512, "03", "0d", "04", 64},
	} {
		add(derECDSASHA2+h.ecdsa, sigAlg{sigECDSA, h.id})
		add(derPKCS1+h.rsa+derNull, sigAlg{sigPKCS1, h.id})
		add(derPKCS1+h.rsa, sigAlg{sigPKCS1, h.id})
		for _, trailer := range []string{"", "a303020101"} {
			for _, hashNull := range []string{derNull, ""} {
				for _, mgfNull := range []string{derNull, ""} {
					hash := tagged("a0", sequence(derSHA2+h.sha2+hashNull))
					mgf := tagged("a1", sequence(derPKCS1+"08"+hex.EncodeToString(sequence(derSHA2+h.sha2+mgfNull))))
					salt := tagged("a2", []byte{2, 1, h.salt})
					params := sequence(hash + mgf + salt + trailer)
					add(derPKCS1+"0a"+hex.EncodeToString(params), sigAlg{sigPSS, h.id})
				}
			}
		}
	}
	return accepted, canonical
}

// sequence and tagged write DER of less than 128 octets from constants.
func sequence(contentHex string) []byte { return tlv(0x30, unhex(contentHex)) }

func tagged(tagHex string, content []byte) string {
	return hex.EncodeToString(tlv(unhex(tagHex)[0], content))
}

func tlv(tag byte, content []byte) []byte {
	if len(content) > 127 {
		panic("suite: DER constant too long")
	}
	return append([]byte{tag, byte(len(content))}, content...)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a constant
	}
	return b
}

// splitAuthData takes the data of an AUTH payload of method 14 apart (RFC 7427, section 3): one
// octet of length, the AlgorithmIdentifier, the signature. Errors wrap ErrAuthMethod.
func splitAuthData(data []byte) (sigAlg, []byte, error) {
	n := 0
	if len(data) > 0 {
		n = int(data[0]) // not in uint8: 1+255 is 256
	}
	if n > len(data)-1 {
		return sigAlg{}, nil, wrap(ErrAuthMethod, "AUTH data of %d octets is shorter than the AlgorithmIdentifier it announces", len(data))
	}
	id, signature := data[1:1+n], data[1+n:]
	a, ok := algorithmIDs[string(id)]
	if !ok {
		return sigAlg{}, nil, wrap(ErrAuthMethod, "signature algorithm %s; allowed are ECDSA and RSASSA-PSS (salt as long as the hash) and RSASSA-PKCS1-v1_5 with SHA-256, SHA-384 or SHA-512, and Ed25519", describeID(id))
	}
	return a, signature, nil
}

// describeID says for an error what an unknown AlgorithmIdentifier is.
func describeID(der []byte) string {
	var id struct {
		OID    asn1.ObjectIdentifier
		Params asn1.RawValue `asn1:"optional"`
	}
	if rest, err := asn1.Unmarshal(der, &id); err != nil || len(rest) > 0 {
		return "that is not an AlgorithmIdentifier in DER (" + hex.EncodeToString(der[:min(len(der), 80)]) + ")"
	}
	name := map[string]string{
		"1.2.840.113549.1.1.5":   " (sha1WithRSAEncryption)",
		"1.2.840.113549.1.1.10":  " (RSASSA-PSS with other parameters)",
		"1.2.840.10045.4.1":      " (ecdsa-with-SHA1)",
		"1.2.840.10040.4.3":      " (dsa-with-SHA1)",
		"2.16.840.1.101.3.4.3.2": " (dsa-with-SHA256)",
		"1.3.101.113":            " (Ed448)",
	}[id.OID.String()]
	return id.OID.String() + name
}

func cryptoHash(id uint16) (crypto.Hash, bool) {
	switch id {
	case HashSHA256:
		return crypto.SHA256, true
	case HashSHA384:
		return crypto.SHA384, true
	case HashSHA512:
		return crypto.SHA512, true
	}
	return 0, false
}

// HashName returns the name of a hash algorithm of RFC 7427, "SHA2-256" for 2.
func HashName(id uint16) string {
	switch id {
	case HashSHA1:
		return "SHA-1"
	case HashSHA256:
		return "SHA2-256"
	case HashSHA384:
		return "SHA2-384"
	case HashSHA512:
		return "SHA2-512"
	case HashIdentity:
		return "Identity"
	}
	return "hash " + itoa(id)
}
