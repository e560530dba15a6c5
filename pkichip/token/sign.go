package token

import (
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/pkichip/chipproto"
)

// SignRequest says what to sign with which key.
type SignRequest struct {
	Layer   chipproto.Layer
	Service string
	KeyID   []byte
	Scheme  chipproto.Scheme
	Hash    chipproto.Hash
	Salt    int    // PSS
	Data    []byte // digest; for Ed25519 the message
}

// Sign signs. ECDSA signatures are DER (RFC 3279, section 2.2.3).
func (t *Token) Sign(r SignRequest) ([]byte, *Error) {
	if err := checkPlace(r.Layer, r.Service); err != nil {
		return nil, err
	}
	var sig []byte
	err := t.with(func(s pkcs11.SessionHandle) error {
		k, err := t.key(s, label(r.Layer, r.Service), r.KeyID)
		if err != nil {
			return err
		}
		sig, err = t.sign(s, k, r)
		if err != nil {
			t.forget(label(r.Layer, r.Service), r.KeyID) // its handle may have gone
		}
		return err
	})
	return sig, err
}

// key finds a private key and remembers its handle for this login.
func (t *Token) key(s pkcs11.SessionHandle, lbl string, id []byte) (keyHandle, error) {
	name := lbl + "\x00" + hex.EncodeToString(id)
	t.mu.Lock()
	k, ok := t.keys[name]
	gen := t.gen
	t.mu.Unlock()
	if ok {
		return k, nil
	}
	h, err := t.findObjects(s, class(pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, lbl), attr(pkcs11.CKA_ID, id))
	if err != nil {
		return k, err
	}
	if len(h) != 1 {
		if t.cfg.PIN.none() {
			return k, wrap(whileLogin, pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN))
		}
		return k, fail(chipproto.CodeNoKey, fmt.Sprintf("the token has %d keys %s with this ID, expected one", len(h), lbl), "check with `wardgate token list`")
	}
	a, err := t.p.GetAttributeValue(s, h[0], []*pkcs11.Attribute{attr(pkcs11.CKA_KEY_TYPE, nil)})
	if err != nil {
		return k, in("C_GetAttributeValue", err)
	}
	k = keyHandle{h: h[0], kind: ulong(a[0].Value)}
	t.mu.Lock()
	if t.gen == gen {
		t.keys[name] = k
	}
	t.mu.Unlock()
	return k, nil
}

func (t *Token) forget(lbl string, id []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, lbl+"\x00"+hex.EncodeToString(id))
}

// forgetAll is for changes of the content.
func (t *Token) forgetAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.keys)
}

// digestInfo are the DER prefixes of RFC 8017, section 9.2, note 1.
var digestInfo = map[chipproto.Hash]string{
	chipproto.HashSHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	chipproto.HashSHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	chipproto.HashSHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

var pssHash = map[chipproto.Hash][2]uint{
	chipproto.HashSHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	chipproto.HashSHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	chipproto.HashSHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

var hashSize = map[chipproto.Hash]int{chipproto.HashSHA256: 32, chipproto.HashSHA384: 48, chipproto.HashSHA512: 64}

func (t *Token) sign(s pkcs11.SessionHandle, k keyHandle, r SignRequest) ([]byte, error) {
	var m *pkcs11.Mechanism
	data := r.Data
	want := uint(pkcs11.CKK_RSA)
	switch r.Scheme {
	case chipproto.SchemeECDSA:
		want, m = pkcs11.CKK_EC, pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	case chipproto.SchemeEd25519:
		want, m = ckkECEdwards, pkcs11.NewMechanism(ckmEdDSA, nil)
	case chipproto.SchemePKCS1v15:
		m = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)
		data = append([]byte(digestInfo[r.Hash]), data...)
	case chipproto.SchemePSS:
		h := pssHash[r.Hash]
		m = pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(h[0], h[1], uint(r.Salt)))
	default:
		return nil, fail(chipproto.CodeBadRequest, fmt.Sprintf("unknown signature scheme %d", r.Scheme), "")
	}
	if k.kind != want {
		return nil, fail(chipproto.CodeBadRequest, "the key is of another kind than the signature", "")
	}
	if (r.Scheme == chipproto.SchemeEd25519) != (r.Hash == chipproto.HashNone) || (r.Hash != chipproto.HashNone && len(r.Data) != hashSize[r.Hash]) {
		return nil, fail(chipproto.CodeBadRequest, fmt.Sprintf("a digest of %d octets does not fit hash %d and scheme %d", len(r.Data), r.Hash, r.Scheme), "")
	}
	if err := t.p.SignInit(s, []*pkcs11.Mechanism{m}, k.h); err != nil {
		return nil, in("C_SignInit", err)
	}
	sig, err := t.p.Sign(s, data)
	if err != nil {
		return nil, in("C_Sign", err)
	}
	if r.Scheme == chipproto.SchemeECDSA {
		return ecdsaDER(sig)
	}
	return sig, nil
}

// ecdsaDER turns r|s (PKCS #11 v2.40, section 2.3.1) into a SEQUENCE of two INTEGERs.
func ecdsaDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 || len(raw) > 2*66 {
		return nil, fail(chipproto.CodeToken, fmt.Sprintf("the token's ECDSA signature has %d octets", len(raw)), "use another module")
	}
	n := len(raw) / 2
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:n]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[n:]))
	})
	return b.Bytes()
}

// exponent is the RSA public exponent of keys that are made here.
var exponent = []byte{1, 0, 1}
