package suite

import "strconv"

// Protocol identifiers of a proposal (RFC 7296, section 3.3.1).
const (
	ProtocolIKE uint8 = 1
	ProtocolESP uint8 = 3
)

// Transform types (RFC 7296, section 3.3.2; RFC 9370, section 4.1).
const (
	TypeENCR   uint8 = 1
	TypePRF    uint8 = 2
	TypeINTEG  uint8 = 3
	TypeKE     uint8 = 4
	TypeESN    uint8 = 5
	TypeADDKE1 uint8 = 6 // up to TypeADDKE7
	TypeADDKE7 uint8 = 12
)

// Encryption transforms (IANA, "Transform Type 1").
const (
	EncrAESCBC           uint16 = 12 // RFC 3602, key length attribute
	EncrAESGCM16         uint16 = 20 // RFC 4106, RFC 5282, key length attribute
	EncrChaCha20Poly1305 uint16 = 28 // RFC 7634, no key length attribute

	// With the sequence number for an IV; ESP only (RFC 8750).
	EncrAESGCM16IIV         uint16 = 30
	EncrChaCha20Poly1305IIV uint16 = 31
)

// Pseudorandom functions (IANA, "Transform Type 2").
const (
	PRFHMACSHA256 uint16 = 5 // RFC 4868
	PRFHMACSHA384 uint16 = 6
	PRFHMACSHA512 uint16 = 7
)

// Integrity transforms (IANA, "Transform Type 3").
const (
	IntegNone          uint16 = 0
	IntegHMACSHA256128 uint16 = 12 // RFC 4868
	IntegHMACSHA384192 uint16 = 13
	IntegHMACSHA512256 uint16 = 14
)

// Key exchange methods (IANA, "Transform Type 4"; also of types 6 to 12).
const (
	KENone      uint16 = 0
	KEMODP2048  uint16 = 14 // RFC 3526
	KEMODP3072  uint16 = 15
	KEECP256    uint16 = 19 // RFC 5903
	KEECP384    uint16 = 20
	KEECP521    uint16 = 21
	KEX25519    uint16 = 31 // RFC 8031
	KEMLKEM768  uint16 = 36 // FIPS 203; not in IKE_SA_INIT, where its key does not fit
	KEMLKEM1024 uint16 = 37
)

// Sequence numbers (IANA, "Transform Type 5"; RFC 9827 renamed the values).
const (
	ESNNo  uint16 = 0 // 32-bit
	ESNYes uint16 = 1 // 64-bit, the lower half sent
)

// Authentication methods of the AUTH payload (IANA; RFC 7296, section 3.8).
const (
	AuthRSA              uint8 = 1 // PKCS #1 v1.5 with SHA-1 in practice: refused
	AuthPSK              uint8 = 2
	AuthECDSA256         uint8 = 9 // RFC 4754
	AuthECDSA384         uint8 = 10
	AuthECDSA521         uint8 = 11
	AuthNull             uint8 = 13 // RFC 7619: never accepted
	AuthDigitalSignature uint8 = 14 // RFC 7427
)

// Hash algorithms of the notification SIGNATURE_HASH_ALGORITHMS (RFC 7427, section 7; RFC 8420).
const (
	HashSHA1     uint16 = 1 // known, to name it in errors; never used
	HashSHA256   uint16 = 2
	HashSHA384   uint16 = 3
	HashSHA512   uint16 = 4
	HashIdentity uint16 = 5 // Ed25519 signs the octets themselves
)

// algorithm is one row of the table of transforms that can be named and negotiated.
type algorithm struct {
	typ     uint8
	id      uint16
	keyBits int    // key length attribute, 0: none
	name    string // in proposal strings
	legacy  bool   // parsed, but never in a default list
}

// algorithms is everything that ParseProposal understands. A transform that is not in it can
// neither be offered nor chosen.
var algorithms = []algorithm{
	{TypeENCR, EncrAESGCM16, 256, "aes256gcm16", false},
	{TypeENCR, EncrAESGCM16, 128, "aes128gcm16", false},
	{TypeENCR, EncrChaCha20Poly1305, 0, "chacha20poly1305", false},
	{TypeENCR, EncrAESGCM16IIV, 256, "aes256gcm16iiv", false},
	{TypeENCR, EncrAESGCM16IIV, 128, "aes128gcm16iiv", false},
	{TypeENCR, EncrChaCha20Poly1305IIV, 0, "chacha20poly1305iiv", false},
	{TypeENCR, EncrAESCBC, 256, "aes256", false},
	{TypeENCR, EncrAESCBC, 128, "aes128", false},
	{TypePRF, PRFHMACSHA256, 0, "prfsha256", false},
	{TypePRF, PRFHMACSHA384, 0, "prfsha384", false},
	{TypePRF, PRFHMACSHA512, 0, "prfsha512", false},
	{TypeINTEG, IntegHMACSHA256128, 0, "sha256", false},
	{TypeINTEG, IntegHMACSHA384192, 0, "sha384", false},
	{TypeINTEG, IntegHMACSHA512256, 0, "sha512", false},
	{TypeKE, KEECP256, 0, "ecp256", false},
	{TypeKE, KEECP384, 0, "ecp384", false},
	{TypeKE, KEECP521, 0, "ecp521", false},
	{TypeKE, KEX25519, 0, "x25519", false},
	{TypeKE, KEMODP2048, 0, "modp2048", true},
	{TypeKE, KEMODP3072, 0, "modp3072", true},
	{TypeESN, ESNYes, 0, "esn", false},
	{TypeESN, ESNNo, 0, "noesn", false},
}

// kemAlgorithms are additional key exchanges (RFC 9370), or the only one of a CHILD SA.
var kemAlgorithms = []algorithm{
	{TypeKE, KEMLKEM768, 0, "mlkem768", false},
	{TypeKE, KEMLKEM1024, 0, "mlkem1024", false},
}

// aliases are strongSwan's other names of the same things.
var aliases = map[string]string{
	"curve25519":       "x25519",
	"aes256gcm128":     "aes256gcm16",
	"aes128gcm128":     "aes128gcm16",
	"aes256gcm":        "aes256gcm16",
	"aes128gcm":        "aes128gcm16",
	"chacha20poly1305": "chacha20poly1305",
	"sha2_256":         "sha256",
	"sha2_384":         "sha384",
	"sha2_512":         "sha512",
	"ecp_256":          "ecp256",
}

// foreign are names of transforms that peers offer and that are never chosen, so that an error
// can say more than a number.
var foreign = map[[2]uint16]string{
	{uint16(TypeENCR), 2}:  "des",
	{uint16(TypeENCR), 3}:  "3des",
	{uint16(TypeENCR), 5}:  "idea",
	{uint16(TypeENCR), 6}:  "cast128",
	{uint16(TypeENCR), 7}:  "blowfish",
	{uint16(TypeENCR), 11}: "null",
	{uint16(TypeENCR), 12}: "aes",
	{uint16(TypeENCR), 13}: "aesctr",
	{uint16(TypeENCR), 14}: "aesccm8",
	{uint16(TypeENCR), 15}: "aesccm12",
	{uint16(TypeENCR), 16}: "aesccm16",
	{uint16(TypeENCR), 18}: "aesgcm8",
	{uint16(TypeENCR), 19}: "aesgcm12",
	{uint16(TypeENCR), 20}: "aesgcm16",
	{uint16(TypeENCR), 21}: "aesgmac",
	{uint16(TypeENCR), 23}: "camellia",
	{uint16(TypeENCR), 24}: "camelliactr",
	{uint16(TypePRF), 1}:   "prfmd5",
	{uint16(TypePRF), 2}:   "prfsha1",
	{uint16(TypePRF), 4}:   "prfaesxcbc",
	{uint16(TypePRF), 8}:   "prfaescmac",
	{uint16(TypeINTEG), 0}: "nointeg",
	{uint16(TypeINTEG), 1}: "md5",
	{uint16(TypeINTEG), 2}: "sha1",
	{uint16(TypeINTEG), 5}: "aesxcbc",
	{uint16(TypeINTEG), 8}: "aescmac",
	{uint16(TypeKE), 0}:    "noke",
	{uint16(TypeKE), 1}:    "modp768",
	{uint16(TypeKE), 2}:    "modp1024",
	{uint16(TypeKE), 5}:    "modp1536",
	{uint16(TypeKE), 16}:   "modp4096",
	{uint16(TypeKE), 17}:   "modp6144",
	{uint16(TypeKE), 18}:   "modp8192",
	{uint16(TypeKE), 22}:   "modp1024s160",
	{uint16(TypeKE), 23}:   "modp2048s224",
	{uint16(TypeKE), 24}:   "modp2048s256",
	{uint16(TypeKE), 25}:   "ecp192",
	{uint16(TypeKE), 26}:   "ecp224",
	{uint16(TypeKE), 28}:   "ecp256bp",
	{uint16(TypeKE), 29}:   "ecp384bp",
	{uint16(TypeKE), 30}:   "ecp512bp",
	{uint16(TypeKE), 32}:   "x448",
	{uint16(TypeKE), 35}:   "mlkem512",
	{uint16(TypeESN), 2}:   "unspecified-esn",
}

// byName finds the row of a token of a proposal string.
func byName(name string) (algorithm, bool) {
	if n, ok := aliases[name]; ok {
		name = n
	}
	for _, a := range algorithms {
		if a.name == name {
			return a, true
		}
	}
	return algorithm{}, false
}

func byID(typ uint8, id uint16, keyBits int) (algorithm, bool) {
	if typ >= TypeADDKE1 && typ <= TypeADDKE7 {
		typ = TypeKE
		if id == KENone && keyBits == 0 {
			return algorithm{typ: TypeKE, name: noneName}, true
		}
	}
	for _, a := range kemAlgorithms {
		if typ == TypeKE && a.id == id && a.keyBits == keyBits {
			return a, true
		}
	}
	for _, a := range algorithms {
		if a.typ == typ && a.id == id && a.keyBits == keyBits {
			return a, true
		}
	}
	return algorithm{}, false
}

func isKEM(ke uint16) bool { return ke == KEMLKEM768 || ke == KEMLKEM1024 }

// isAEAD says whether an encryption transform authenticates by itself.
func isAEAD(encr uint16) bool {
	return encr == EncrAESGCM16 || encr == EncrChaCha20Poly1305 || isIIV(encr)
}

// isIIV says whether an encryption transform has an implicit IV, and so is for ESP alone.
func isIIV(encr uint16) bool { return encr == EncrAESGCM16IIV || encr == EncrChaCha20Poly1305IIV }

// TransformName returns the name of a transform as in proposal strings ("aes256gcm16",
// "modp1024", "ke1_mlkem768"), or its numbers when it has none ("encr:99/128").
func TransformName(t TransformSpec) string {
	prefix, typ := "", t.Type
	if typ >= TypeADDKE1 && typ <= TypeADDKE7 {
		prefix, typ = "ke"+strconv.Itoa(int(typ-TypeADDKE1)+1)+"_", TypeKE
	}
	if a, ok := byID(t.Type, t.ID, t.KeyBits); ok {
		return prefix + a.name
	}
	name, ok := foreign[[2]uint16{uint16(typ), t.ID}]
	if !ok {
		for _, a := range algorithms {
			if a.typ == typ && a.id == t.ID {
				name, ok = a.name, true
			}
		}
	}
	if !ok {
		name = typeName(typ) + ":" + strconv.Itoa(int(t.ID))
	}
	switch {
	case t.KeyBits < 0:
		name += "/unknown-attribute"
	case t.KeyBits > 0:
		name += "/" + strconv.Itoa(t.KeyBits)
	}
	return prefix + name
}

// KEName returns the name of a key exchange method, "x25519" for 31.
func KEName(id uint16) string {
	return TransformName(TransformSpec{Type: TypeKE, ID: id})
}

func typeName(t uint8) string {
	switch t {
	case TypeENCR:
		return "encr"
	case TypePRF:
		return "prf"
	case TypeINTEG:
		return "integ"
	case TypeKE:
		return "ke"
	case TypeESN:
		return "esn"
	}
	if t >= TypeADDKE1 && t <= TypeADDKE7 {
		return "addke" + strconv.Itoa(int(t-TypeADDKE1)+1)
	}
	return "type" + strconv.Itoa(int(t))
}

func protocolName(p uint8) string {
	switch p {
	case ProtocolIKE:
		return "IKE"
	case ProtocolESP:
		return "ESP"
	}
	return "protocol " + strconv.Itoa(int(p))
}
