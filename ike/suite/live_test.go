package suite

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"wardgate/internal/testvectors"
)

// The walk through headers and payloads below is as small as it can be: the captures are known
// to be good, and the real codec is not this package's.

type livePayload struct {
	typ  uint8
	body []byte // without generic header
}

func livePayloads(t *testing.T, first uint8, b []byte) []livePayload {
	t.Helper()
	var list []livePayload
	for typ := first; typ != 0; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		list = append(list, livePayload{typ, b[4:n]})
		typ, b = b[0], b[n:]
	}
	return list
}

func livePick(list []livePayload, typ uint8) []byte {
	for _, p := range list {
		if p.typ == typ {
			return p.body
		}
	}
	return nil
}

func liveOffers(t *testing.T, sa []byte) []Offer {
	t.Helper()
	var offers []Offer
	for len(sa) > 0 {
		n, spi, count := int(binary.BigEndian.Uint16(sa[2:])), int(sa[6]), int(sa[7])
		o := Offer{Number: sa[4], Protocol: sa[5], SPI: sa[8 : 8+spi]}
		for b := sa[8+spi : n]; len(b) > 0; count-- {
			m := int(binary.BigEndian.Uint16(b[2:]))
			tr := TransformSpec{Type: b[4], ID: binary.BigEndian.Uint16(b[6:])}
			if m == 12 && binary.BigEndian.Uint16(b[8:]) == 0x800e {
				tr.KeyBits = int(binary.BigEndian.Uint16(b[10:]))
			} else if m != 8 {
				t.Fatalf("transform of %d octets", m)
			}
			o.Transforms, b = append(o.Transforms, tr), b[m:]
		}
		offers, sa = append(offers, o), sa[n:]
	}
	return offers
}

const (
	livePayloadSA, livePayloadKE, livePayloadCERT, livePayloadAUTH, livePayloadNonce = 33, 34, 37, 39, 40
	livePayloadIDi, livePayloadIDr, livePayloadSK, livePayloadSKF                    = 35, 36, 46, 53
)

type liveFile struct {
	PSK      *string               `json:"psk"`
	IKEKeys  []map[string]hexBytes `json:"ike_key_groups"`
	Children []struct {
		Seed   hexBytes
		EncrI  hexBytes `json:"encryption_initiator_key"`
		EncrR  hexBytes `json:"encryption_responder_key"`
		IntegI hexBytes `json:"integrity_initiator_key"`
		IntegR hexBytes `json:"integrity_responder_key"`
	} `json:"child_keys"`
	Log []struct {
		Label string
		Hex   hexBytes
	} `json:"log_of_A"`
	Messages []struct {
		Src           string
		Exchange      string
		Response      bool
		InitiatorFlag bool     `json:"initiator_flag"`
		MsgID         uint32   `json:"msgid"`
		IKEMessage    hexBytes `json:"ike_message"`
		Keys          *int
		Plaintext     hexBytes
		Fragment      []int
		Reassembled   bool
		First         uint8 `json:"first_inner_payload"`
	}
}

// liveSA is an IKE SA of the replay.
type liveSA struct {
	chosen Chosen
	prf    PRF
	keys   *IKEKeys
	i, r   *Protector
}

// liveLife replays one recorded life of two strongSwan daemons: it negotiates from the recorded
// SA payloads, derives every key of it, opens every SK and SKF payload and verifies every AUTH.
// Only the key exchange secrets are taken from the log.
type liveLife struct {
	t          *testing.T
	f          liveFile
	own        [2][]Proposal // IKE, ESP as in the daemon's configuration
	log        map[string][][]byte
	sas        []*liveSA
	ni, nr     []byte // of IKE_SA_INIT
	spis       [2][8]byte
	child      int // CHILD SAs made
	intAuth    [2][]byte
	intA, intP []byte // of the last IKE_INTERMEDIATE message
	opened     int
	fragment   []byte // plaintext of the message before
	authed     int
}

func (l *liveLife) next(label string) []byte {
	l.t.Helper()
	list := l.log[label]
	if len(list) == 0 {
		l.t.Fatalf("no %q left in the log", label)
	}
	l.log[label] = list[1:]
	return list[0]
}

func TestStrongSwanLives(t *testing.T) {
	for _, s := range []struct{ name, ike, esp string }{
		{"psk-gcm", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384-noesn-esn"},
		{"cbc-sha2", "aes256-sha256-modp2048", "aes128-sha256-noesn-esn"},
		{"cert-mlkem", "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768-noesn-esn"},
	} {
		t.Run(s.name, func(t *testing.T) {
			l := &liveLife{t: t, log: map[string][][]byte{}}
			testvectors.JSON(t, "strongswan-live/"+s.name+".json.gz", &l.f)
			for _, e := range l.f.Log {
				l.log[e.Label] = append(l.log[e.Label], e.Hex)
			}
			for i, str := range []string{s.ike, s.esp} {
				p, err := ParseProposal([]uint8{ProtocolIKE, ProtocolESP}[i], str)
				if err != nil {
					t.Fatal(err)
				}
				l.own[i] = []Proposal{p}
			}
			l.run()
		})
	}
}

// negotiate replays both sides: our Select must give the recorded answer, our Accept take it.
func (l *liveLife) negotiate(request, response []Offer, opt SelectOptions) Chosen {
	l.t.Helper()
	c, err := Accept(request, response)
	if err != nil {
		l.t.Fatal(err)
	}
	own := l.own[0]
	if c.Protocol == ProtocolESP {
		own = l.own[1]
	}
	sel, err := Select(own, request, opt)
	if err != nil {
		l.t.Fatal(err)
	}
	if sel.Number != c.Number || sel.String() != c.String() {
		l.t.Errorf("Select chose #%d %s, strongSwan #%d %s", sel.Number, sel, c.Number, c)
	}
	return c
}

// install files a new IKE SA after comparing its keys with the log.
func (l *liveLife) install(c Chosen, seed Secret, ni, nr []byte, spis [2][8]byte) {
	l.t.Helper()
	keys, err := DeriveIKEKeys(c, seed, ni, nr, spis[0], spis[1])
	if err != nil {
		l.t.Fatal(err)
	}
	want := l.f.IKEKeys[len(l.sas)]
	for label, got := range map[string]Secret{"SKEYSEED": seed, "Sk_d": keys.SKd, "Sk_ai": keys.SKai, "Sk_ar": keys.SKar, "Sk_ei": keys.SKei, "Sk_er": keys.SKer, "Sk_pi": keys.SKpi, "Sk_pr": keys.SKpr} {
		equal(l.t, name("keys ", len(l.sas), " ", label), got.Bytes(), want[label])
	}
	i, r, err := keys.Protectors(c, true, bytes.NewReader(nil))
	if err != nil {
		l.t.Fatal(err)
	}
	l.sas = append(l.sas, &liveSA{c, mustPRF(l.t, c.PRF), keys, i, r})
}

func (l *liveLife) installChild(sa *liveSA, c Chosen, shared Secret, ni, nr []byte, additional ...Secret) {
	l.t.Helper()
	k, err := DeriveChildKeys(sa.prf, sa.keys.SKd, c, shared, ni, nr, additional...)
	if err != nil {
		l.t.Fatal(err)
	}
	w := l.f.Children[l.child]
	equal(l.t, "encryption initiator key", k.EncrI.Bytes(), w.EncrI)
	equal(l.t, "encryption responder key", k.EncrR.Bytes(), w.EncrR)
	equal(l.t, "integrity initiator key", k.IntegI.Bytes(), w.IntegI)
	equal(l.t, "integrity responder key", k.IntegR.Bytes(), w.IntegR)
	l.child++
}

// open opens the SK or SKF payload of message i and returns what is in it, nil for a fragment
// that is not the last.
func (l *liveLife) open(i int) []livePayload {
	t, m := l.t, l.f.Messages[i]
	t.Helper()
	raw, sa := []byte(m.IKEMessage), l.sas[*m.Keys]
	p := sa.r
	if m.InitiatorFlag {
		p = sa.i
	}
	clear := 28 + 4
	if raw[16] == livePayloadSKF {
		clear += 4
	}
	plain, err := p.Open(raw[:clear], raw[clear:])
	if err != nil {
		t.Fatalf("message %d: %v", i, err)
	}
	inner := plain
	if m.Reassembled {
		inner = concat(l.fragment, plain)
	}
	l.fragment = plain
	equal(t, name("plaintext of message ", i), plain, m.Plaintext)
	l.opened++
	if n := p.SealedLen(len(plain)); n != len(raw)-clear {
		t.Errorf("message %d: SealedLen %d, recorded %d", i, n, len(raw)-clear)
	}
	if max := p.MaxPlaintext(len(raw) - clear); max < len(plain) {
		t.Errorf("message %d: MaxPlaintext %d for %d", i, max, len(plain))
	}
	for j := 0; j < len(raw); j += 7 {
		bad := bytes.Clone(raw)
		bad[j] ^= 1
		if _, err := p.Open(bad[:clear], bad[clear:]); !errors.Is(err, ErrOpen) {
			t.Fatalf("message %d, octet %d changed: %v", i, j, err)
		}
	}
	// AEAD with the same IV seals to the same octets.
	if p.cbc == nil {
		again := &Protector{encr: p.encr, key: p.key}
		again.counter.Store(be64(raw[clear:clear+8]) - 1)
		if iv := be64(raw[clear : clear+8]); iv != 0 {
			sealed, err := again.AppendSealed(bytes.Clone(raw[:clear]), raw[:clear], plain)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, name("message ", i, " sealed again"), sealed, raw)
		}
	}
	if len(m.Fragment) == 2 {
		if m.Fragment[0] != m.Fragment[1] {
			return nil
		}
	}
	if m.Exchange == "IKE_INTERMEDIATE" {
		// RFC 9242, section 3.3.2: the header and that of SK as if nothing was encrypted or cut.
		l.intA = bytes.Clone(raw[:32])
		l.intA[16], l.intA[28] = livePayloadSK, m.First
		binary.BigEndian.PutUint32(l.intA[24:], uint32(32+len(inner)))
		binary.BigEndian.PutUint16(l.intA[30:], uint16(4+len(inner)))
		l.intP = inner
	}
	return livePayloads(t, m.First, inner)
}

func (l *liveLife) run() {
	t := l.t
	type pending struct {
		sa     *liveSA
		offers []Offer
		chosen Chosen
		ni, nr []byte
	}
	var p pending
	finish := func() {
		var shared Secret
		var more []Secret
		if p.chosen.KE != KENone {
			shared = CopySecret(l.next("key exchange secret"))
		}
		if p.chosen.HasAdditionalKE() {
			more = append(more, CopySecret(l.next("additional key exchange secret")))
		}
		if p.chosen.Protocol == ProtocolESP {
			l.installChild(p.sa, p.chosen, shared, p.ni, p.nr, more...)
			return
		}
		seed := RekeySKEYSEED(p.sa.prf, p.sa.keys.SKd, shared, p.ni, p.nr, more...)
		l.install(p.chosen, seed, p.ni, p.nr, [2][8]byte{[8]byte(p.offers[0].SPI), [8]byte(p.chosen.SPI)})
	}
	for i, m := range l.f.Messages {
		raw := []byte(m.IKEMessage)
		var in []livePayload
		if m.Exchange == "IKE_SA_INIT" {
			in = livePayloads(t, raw[16], raw[28:])
		} else if in = l.open(i); in == nil && len(m.Fragment) == 2 && m.Fragment[0] != m.Fragment[1] {
			continue
		}
		sa := livePick(in, livePayloadSA)
		switch m.Exchange {
		case "IKE_SA_INIT":
			if !m.Response {
				p.offers, l.ni = liveOffers(t, sa), livePick(in, livePayloadNonce)
				break
			}
			l.nr = livePick(in, livePayloadNonce)
			l.spis = [2][8]byte{[8]byte(raw), [8]byte(raw[8:])}
			c := l.negotiate(p.offers, liveOffers(t, sa), SelectOptions{})
			if n, _ := PublicLen(c.KE); n != len(livePick(in, livePayloadKE))-4 {
				t.Errorf("KE of %d octets, PublicLen says %d", len(livePick(in, livePayloadKE))-4, n)
			}
			prf := mustPRF(t, c.PRF)
			for _, n := range [][]byte{l.ni, l.nr} {
				if err := prf.CheckNonce(n); err != nil {
					t.Error(err)
				}
			}
			l.install(c, SKEYSEED(prf, CopySecret(l.next("key exchange secret")), l.ni, l.nr), l.ni, l.nr, l.spis)
		case "IKE_INTERMEDIATE":
			first := l.sas[0]
			ini, res := PublicLen(KEMLKEM768)
			want, side, skp := ini, 0, first.keys.SKpi
			if m.Response {
				want, side, skp = res, 1, first.keys.SKpr
			}
			if n := len(livePick(in, livePayloadKE)) - 4; n != want {
				t.Errorf("ML-KEM data of %d octets, PublicLen says %d", n, want)
			}
			// The log stops after 1008 octets.
			logged := l.next("IntAuth_A|P")
			equal(t, "IntAuth_A|P", concat(l.intA, l.intP)[:len(logged)], logged)
			l.intAuth[side] = IntAuth(first.prf, skp, nil, l.intA, l.intP)
			equal(t, "IntAuth", l.intAuth[side], l.next("IntAuth_N = prf(Sk_px, data)"))
			if m.Response {
				seed := AdditionalSKEYSEED(first.prf, first.keys.SKd, CopySecret(l.next("key exchange secret")), l.ni, l.nr)
				l.install(first.chosen, seed, l.ni, l.nr, l.spis)
			}
		case "IKE_AUTH":
			l.auth(in, m.Response, m.MsgID)
			if !m.Response {
				p.offers = liveOffers(t, sa)
				break
			}
			c := l.negotiate(p.offers, liveOffers(t, sa), SelectOptions{WithoutKE: true})
			l.installChild(l.sas[*m.Keys], c, Secret{}, l.ni, l.nr)
		case "CREATE_CHILD_SA":
			if !m.Response {
				p = pending{sa: l.sas[*m.Keys], offers: liveOffers(t, sa), ni: livePick(in, livePayloadNonce)}
				break
			}
			p.nr = livePick(in, livePayloadNonce)
			p.chosen = l.negotiate(p.offers, liveOffers(t, sa), SelectOptions{})
			if !p.chosen.HasAdditionalKE() {
				finish()
			}
		case "IKE_FOLLOWUP_KE":
			if m.Response {
				finish()
			}
		}
	}
	if len(l.sas) != len(l.f.IKEKeys) || l.child != len(l.f.Children) || l.authed != 2 || l.opened != len(l.f.Messages)-2 {
		t.Errorf("%d of %d IKE key groups, %d of %d CHILD SAs, %d of 2 AUTH, %d of %d messages opened",
			len(l.sas), len(l.f.IKEKeys), l.child, len(l.f.Children), l.authed, l.opened, len(l.f.Messages)-2)
	}
	for label, left := range l.log {
		if strings.HasSuffix(label, "key exchange secret") && len(left) > 0 {
			t.Errorf("%d %q not used", len(left), label)
		}
	}
}

// auth verifies the AUTH payload of one side of IKE_AUTH.
func (l *liveLife) auth(in []livePayload, response bool, msgID uint32) {
	t, sa := l.t, l.sas[len(l.sas)-1]
	t.Helper()
	message, nonce, skp, id := l.f.Messages[0].IKEMessage, l.nr, sa.keys.SKpi, livePick(in, livePayloadIDi)
	if response {
		message, nonce, skp, id = l.f.Messages[1].IKEMessage, l.ni, sa.keys.SKpr, livePick(in, livePayloadIDr)
	}
	var intAuth []byte
	if l.intAuth[0] != nil {
		intAuth = binary.BigEndian.AppendUint32(concat(l.intAuth[0], l.intAuth[1]), msgID)
	}
	octets := SignedOctets(sa.prf, skp, message, nonce, id, intAuth)
	equal(t, "octets of AUTH", octets, l.next("octets = message + nonce + prf(Sk_px, IDx') + IntAuth"))
	auth := livePick(in, livePayloadAUTH)
	method, data := auth[0], auth[4:]
	if method == AuthPSK {
		if err := VerifyPSK(sa.prf, CopySecret([]byte(*l.f.PSK)), octets, data); err != nil {
			t.Error(err)
		}
		if err := VerifyPSK(sa.prf, CopySecret([]byte(*l.f.PSK+"x")), octets, data); !errors.Is(err, ErrSignature) {
			t.Errorf("other key: %v", err)
		}
	} else {
		cert, err := x509.ParseCertificate(livePick(in, livePayloadCERT)[1:])
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifySignature(cert.PublicKey, method, data, octets, SignatureHashes()); err != nil {
			t.Error(err)
		}
		if got := DescribeAuth(method, data); got != "ECDSA with SHA2-384 (method 14)" {
			t.Errorf("DescribeAuth: %s", got)
		}
		octets[len(octets)-1] ^= 1
		if err := VerifySignature(cert.PublicKey, method, data, octets, SignatureHashes()); !errors.Is(err, ErrSignature) {
			t.Errorf("other octets: %v", err)
		}
	}
	l.authed++
}
