package suite

import "io"

// SKEYSEED returns prf(Ni | Nr, g^ir) (RFC 7296, section 2.14). ni and nr are the contents of
// the Nonce payloads of IKE_SA_INIT.
func SKEYSEED(prf PRF, shared Secret, ni, nr []byte) Secret {
	key := NewSecret(concat(ni, nr))
	return NewSecret(prf.Sum(key, shared.Bytes()))
}

// RekeySKEYSEED returns the SKEYSEED of an IKE SA that replaces another one:
// prf(SK_d (old), g^ir (new) | Ni | Nr | SK(1) | … | SK(n)) (RFC 7296, section 2.18; RFC 9370,
// section 2.2.4). The PRF is that of the old IKE SA; the keys are then derived with the new one.
func RekeySKEYSEED(oldPRF PRF, oldSKd, shared Secret, ni, nr []byte, additional ...Secret) Secret {
	data := append([][]byte{shared.Bytes(), ni, nr}, octets(additional)...)
	return NewSecret(oldPRF.Sum(oldSKd, data...))
}

// AdditionalSKEYSEED returns SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr) after the n-th
// IKE_INTERMEDIATE key exchange (RFC 9370, section 2.2.2), with the nonces of IKE_SA_INIT.
func AdditionalSKEYSEED(prf PRF, skd, shared Secret, ni, nr []byte) Secret {
	return NewSecret(prf.Sum(skd, shared.Bytes(), ni, nr))
}

// IKEKeys are the keys of an IKE SA (RFC 7296, section 2.14).
type IKEKeys struct {
	SKd        Secret // for CHILD SAs and rekeying
	SKai, SKar Secret // integrity; empty with AEAD
	SKei, SKer Secret // encryption; with AEAD the salt is behind the key
	SKpi, SKpr Secret // for AUTH
}

// DeriveIKEKeys derives all keys of an IKE SA from SKEYSEED, in the order SK_d, SK_ai, SK_ar,
// SK_ei, SK_er, SK_pi, SK_pr. spii and spir are the SPIs of this IKE SA; after a rekey,
// the new ones. Errors wrap ErrUnsupported.
func DeriveIKEKeys(c Chosen, skeyseed Secret, ni, nr []byte, spii, spir [8]byte) (*IKEKeys, error) {
	prf, err := NewPRF(c.PRF)
	if err != nil {
		return nil, err
	}
	encr, integ, err := keyLengths(c)
	if err != nil {
		return nil, err
	}
	return deriveIKEKeys(prf, encr, integ, skeyseed, ni, nr, spii, spir)
}

func deriveIKEKeys(prf PRF, encr, integ int, skeyseed Secret, ni, nr []byte, spii, spir [8]byte) (*IKEKeys, error) {
	all, err := prf.Plus(skeyseed, 3*prf.Size()+2*encr+2*integ, ni, nr, spii[:], spir[:])
	if err != nil {
		return nil, err
	}
	defer all.Wipe()
	cut := cutter(all.Bytes())
	return &IKEKeys{
		SKd:  cut(prf.Size()),
		SKai: cut(integ), SKar: cut(integ),
		SKei: cut(encr), SKer: cut(encr),
		SKpi: cut(prf.Size()), SKpr: cut(prf.Size()),
	}, nil
}

// Protectors returns the protection of SK payloads for both directions. initiator says whether
// we are the original initiator of this IKE SA; rand is the source of the IVs of AES-CBC.
func (k *IKEKeys) Protectors(c Chosen, initiator bool, rand io.Reader) (out, in *Protector, err error) {
	i, err := NewProtector(c, k.SKei, k.SKai, rand)
	if err != nil {
		return nil, nil, err
	}
	r, err := NewProtector(c, k.SKer, k.SKar, rand)
	if err != nil {
		return nil, nil, err
	}
	if initiator {
		return i, r, nil
	}
	return r, i, nil
}

// WipeProtection overwrites SK_a and SK_e, of which Protectors has made copies, and forgets them.
func (k *IKEKeys) WipeProtection() {
	for _, s := range []*Secret{&k.SKai, &k.SKar, &k.SKei, &k.SKer} {
		s.Wipe()
		*s = Secret{}
	}
}

// WipeAuth overwrites SK_p, which only AUTH needs, and forgets it.
func (k *IKEKeys) WipeAuth() {
	for _, s := range []*Secret{&k.SKpi, &k.SKpr} {
		s.Wipe()
		*s = Secret{}
	}
}

// Wipe overwrites all keys.
func (k *IKEKeys) Wipe() {
	for _, s := range []Secret{k.SKd, k.SKai, k.SKar, k.SKei, k.SKer, k.SKpi, k.SKpr} {
		s.Wipe()
	}
}

// MixPPK mixes a postquantum preshared key into the keys (RFC 8784, section 3): SK_d, SK_pi and
// SK_pr become prf+(PPK, old value), the old values are wiped.
func (k *IKEKeys) MixPPK(prf PRF, ppk Secret) error {
	for _, s := range []*Secret{&k.SKd, &k.SKpi, &k.SKpr} {
		mixed, err := prf.Plus(ppk, s.Len(), s.Bytes())
		if err != nil {
			return err
		}
		s.Wipe()
		*s = mixed
	}
	return nil
}

// ChildKeys are the keys of a CHILD SA (RFC 7296, section 2.17). I is the initiator of the
// exchange that made the CHILD SA, which need not be the original initiator of the IKE SA.
type ChildKeys struct {
	EncrI, IntegI Secret // packets from that initiator to the responder; with AEAD the salt is behind the key and IntegI is empty
	EncrR, IntegR Secret // packets from the responder to the initiator
}

// DeriveChildKeys derives KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr [| SK(1) | … | SK(n)])
// (RFC 7296, section 2.17; RFC 9370, section 2.2.4) and cuts it: initiator to responder first,
// for each direction the encryption key with its salt, then the integrity key. prf and skd are
// those of the IKE SA; shared is empty without a new key exchange; ni and nr are the nonces of
// the exchange that makes the CHILD SA. Errors wrap ErrUnsupported.
func DeriveChildKeys(prf PRF, skd Secret, c Chosen, shared Secret, ni, nr []byte, additional ...Secret) (*ChildKeys, error) {
	encr, integ, err := keyLengths(c)
	if err != nil {
		return nil, err
	}
	seed := append([][]byte{shared.Bytes(), ni, nr}, octets(additional)...)
	all, err := prf.Plus(skd, 2*encr+2*integ, seed...)
	if err != nil {
		return nil, err
	}
	defer all.Wipe()
	cut := cutter(all.Bytes())
	return &ChildKeys{EncrI: cut(encr), IntegI: cut(integ), EncrR: cut(encr), IntegR: cut(integ)}, nil
}

// Directions returns the keys by direction. initiator says whether we began the exchange that
// made the CHILD SA.
func (k *ChildKeys) Directions(initiator bool) (encrOut, integOut, encrIn, integIn Secret) {
	if initiator {
		return k.EncrI, k.IntegI, k.EncrR, k.IntegR
	}
	return k.EncrR, k.IntegR, k.EncrI, k.IntegI
}

// Wipe overwrites all keys.
func (k *ChildKeys) Wipe() {
	for _, s := range []Secret{k.EncrI, k.IntegI, k.EncrR, k.IntegR} {
		s.Wipe()
	}
}

// saltLen is the length in octets of the salt behind an AEAD key (RFC 5282, section 7.1;
// RFC 4106, section 8.1; RFC 7634, section 2).
const saltLen = 4

// keyLengths returns the octets of key material for encryption (salt included) and integrity.
func keyLengths(c Chosen) (encr, integ int, err error) {
	cipher, ok := byID(TypeENCR, c.Encr, c.KeyBits)
	if !ok {
		return 0, 0, wrap(ErrUnsupported, "encryption algorithm %s", TransformName(TransformSpec{TypeENCR, c.Encr, c.KeyBits}))
	}
	encr = cipher.keyBits / 8
	if c.Encr == EncrChaCha20Poly1305 || c.Encr == EncrChaCha20Poly1305IIV {
		encr = 32
	}
	if isAEAD(c.Encr) {
		if c.Integ != IntegNone {
			return 0, 0, wrap(ErrUnsupported, "%s together with an integrity algorithm", cipher.name)
		}
		return encr + saltLen, 0, nil
	}
	switch c.Integ {
	case IntegHMACSHA256128:
		integ = 32
	case IntegHMACSHA384192:
		integ = 48
	case IntegHMACSHA512256:
		integ = 64
	default:
		return 0, 0, wrap(ErrUnsupported, "integrity algorithm %s with %s", TransformName(TransformSpec{Type: TypeINTEG, ID: c.Integ}), cipher.name)
	}
	return encr, integ, nil
}

// cutter hands out copies of consecutive parts of b.
func cutter(b []byte) func(n int) Secret {
	return func(n int) Secret {
		s := CopySecret(b[:n])
		b = b[n:]
		return s
	}
}

func octets(secrets []Secret) [][]byte {
	list := make([][]byte, len(secrets))
	for i, s := range secrets {
		list[i] = s.Bytes()
	}
	return list
}

func concat(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := make([]byte, 0, n)
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
