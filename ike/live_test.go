package ike

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/testvectors"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) error {
	out, err := hex.DecodeString(string(b))
	*h = out
	return err
}

// life is one recorded life of two strongSwan 6.1 daemons.
type life struct {
	PSK      string                `json:"psk"`
	IKEKeys  []map[string]hexBytes `json:"ike_key_groups"`
	Children []map[string]hexBytes `json:"child_keys"`
	Log      []struct {
		Label string
		Hex   hexBytes
	} `json:"log_of_A"`
	Messages []struct {
		Src        string
		Ports      [2]uint16
		Exchange   string
		Response   bool
		IKEMessage hexBytes `json:"ike_message"`
		Plaintext  hexBytes
		Fragment   []int
	}
}

func (l *life) all(label string) (out []hexBytes) {
	for _, e := range l.Log {
		if e.Label == label {
			out = append(out, e.Hex)
		}
	}
	return out
}

// TestLiveLives replays what strongSwan recorded through our own reception: each message is
// opened by a generation whose keys come from our derivation, sorted, checked for its form,
// encoded again; every key and AUTH value is compared.
func TestLiveLives(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"psk-gcm", "cbc-sha2", "cert-mlkem"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var l life
			testvectors.JSON(t, "strongswan-live/"+name+".json.gz", &l)
			replay(t, &l)
		})
	}
}

type replayed struct {
	*testing.T
	l       *life
	ends    map[uint64][2]*generation // SPIi → of the initiator, of the responder of the generation
	shared  []hexBytes
	more    []hexBytes // of additional key exchanges
	keys    int
	childNo int
	created *parsed           // the answer to CREATE_CHILD_SA that waits for an additional key exchange
	noted   map[string][]byte // see note
}

func (r *replayed) nextShared() suite.Secret {
	if len(r.shared) == 0 {
		r.Fatal("no key exchange secret left in the log")
	}
	s := suite.CopySecret(r.shared[0])
	r.shared = r.shared[1:]
	return s
}

// derive makes both ends of a generation.
func (r *replayed) derive(c suite.Chosen, seed suite.Secret, ni, nr []byte, spiI, spiR uint64) {
	r.Helper()
	var ends [2]*generation
	for i := range ends {
		sa := &SA{cfg: &Config{keyLog: r.note}, host: replayHost{}, fragment: true}
		ends[i] = &generation{sa: sa, initiator: i == 0, spiI: spiI, spiR: spiR, chosen: c}
		if err := ends[i].protect(seed.Clone(), ni, nr); err != nil {
			r.Fatal(err)
		}
	}
	r.compare(ends[0], seed)
	r.ends[spiI] = ends
}

// compare compares the keys of a generation with the next ones of the log.
func (r *replayed) compare(g *generation, seed suite.Secret) {
	r.Helper()
	want := r.l.IKEKeys[r.keys]
	r.keys++
	if !bytes.Equal(seed.Bytes(), want["SKEYSEED"]) {
		r.Errorf("SKEYSEED of IKE SA %d differs", r.keys)
	}
	for _, k := range []string{"d", "ai", "ar", "ei", "er", "pi", "pr"} {
		if !bytes.Equal(r.noted[fmt.Sprintf("sk_%s-%016x", k, g.spiI)], want["Sk_"+k]) {
			r.Errorf("Sk_%s of IKE SA %d differs", k, r.keys)
		}
	}
}

// note keeps the newest keys of each generation: it does not keep those that it has no use for itself.
func (r *replayed) note(name string, key []byte) {
	if r.noted == nil {
		r.noted = map[string][]byte{}
	}
	r.noted[name] = key
}

// child compares the keys of a CHILD SA.
func (r *replayed) child(g *generation, c suite.Chosen, shared suite.Secret, ni, nr []byte, additional ...suite.Secret) {
	r.Helper()
	k, err := suite.DeriveChildKeys(g.prot.prf, g.prot.keys.SKd, c, shared, ni, nr, additional...)
	if err != nil {
		r.Fatal(err)
	}
	want := r.l.Children[r.childNo]
	r.childNo++
	for label, got := range map[string]suite.Secret{
		"encryption_initiator_key": k.EncrI, "encryption_responder_key": k.EncrR,
		"integrity_initiator_key": k.IntegI, "integrity_responder_key": k.IntegR,
	} {
		if !bytes.Equal(got.Bytes(), want[label]) {
			r.Errorf("%s of CHILD SA %d differs", label, r.childNo)
		}
	}
}

func replay(t *testing.T, l *life) {
	r := &replayed{T: t, l: l, ends: map[uint64][2]*generation{}, shared: l.all("key exchange secret"), more: l.all("additional key exchange secret")}
	var initReq, initResp []byte
	var req, init *parsed
	for n, m := range l.Messages {
		h := peekHeader(m.IKEMessage)
		where := fmt.Sprintf("message %d (%s)", n, m.Exchange)
		if h.exchange == exchangeSAInit {
			msg, err := message.Parse(m.IKEMessage)
			if err != nil {
				t.Fatal(where, err)
			}
			in, err := sort(msg.Payloads)
			if err != nil {
				t.Fatal(where, err)
			}
			again, err := msg.Append(nil)
			if err != nil || !bytes.Equal(again, m.IKEMessage) {
				t.Errorf("%s: does not encode to what it was (%v)", where, err)
			}
			a := netip.AddrPortFrom(netip.MustParseAddr("10.77.0.1"), m.Ports[0])
			b := netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), m.Ports[1])
			if !m.Response {
				initReq, init = m.IKEMessage, in
				// kernel-libipsec always claims a NAT in front of the sender.
				if nat := detectNAT(in, h.spiI, 0, Path{Local: b, Remote: a}, false); !nat.remote || nat.local {
					t.Errorf("%s: NAT %+v", where, nat)
				}
				continue
			}
			if nat := detectNAT(in, h.spiI, h.spiR, Path{Local: a, Remote: b}, false); !nat.remote || nat.local {
				t.Errorf("%s: NAT %+v", where, nat)
			}
			initResp = m.IKEMessage
			chosen, err := suite.Accept(init.sa, in.sa)
			if err != nil {
				t.Fatal(where, err)
			}
			prf, _ := suite.NewPRF(chosen.PRF)
			r.derive(chosen, suite.SKEYSEED(prf, r.nextShared(), init.nonce, in.nonce), init.nonce, in.nonce, h.spiI, h.spiR)
			for _, g := range r.ends[h.spiI] {
				g.sa.handshake = &handshake{ni: init.nonce, nr: in.nonce}
				g.sa.handshake.inter.methods = chosen.AdditionalKE()
			}
			init.ps, init.idr = in.ps, nil // keep Nr below
			init.certs = nil
			init.ke, init.notifies = in.ke, nil
			req = in
			continue
		}
		ends, ok := r.ends[h.spiI]
		if !ok {
			t.Fatalf("%s: unknown IKE SA", where)
		}
		receiver, sender := ends[1], ends[0]
		if !h.fromInitiator {
			receiver, sender = sender, receiver
		}
		in, err := receiver.open(&receiver.inRequest, evDatagram{head: h, msg: m.IKEMessage})
		if err == nil && in == nil && len(m.Fragment) == 2 && m.Fragment[0] < m.Fragment[1] {
			continue
		}
		if err != nil || in == nil {
			t.Fatalf("%s: does not open: %v", where, err)
		}
		in.exchange = h.exchange
		inner, err := message.EncodeInner(in.ps)
		if err != nil || !bytes.HasSuffix(inner.Plain, m.Plaintext) || m.Fragment == nil && len(inner.Plain) != len(m.Plaintext) {
			t.Errorf("%s: does not encode to what it was (%v)", where, err)
		}
		r.check(where, ends, sender, h, in, req, init, initReq, initResp)
		if h.exchange != exchangeAuth || !m.Response {
			if !m.Response {
				switch h.exchange {
				case exchangeIntermediate, exchangeFollowupKE:
				case exchangeAuth:

					init.sa = in.sa // the first CHILD SA's offer
				default:
					req = in
				}
			}
		}
	}
	if r.keys != len(l.IKEKeys) || r.childNo != len(l.Children) || len(r.shared)+len(r.more) != 0 {
		t.Errorf("%d of %d IKE SAs, %d of %d CHILD SAs, %d secrets left", r.keys, len(l.IKEKeys), r.childNo, len(l.Children), len(r.shared)+len(r.more))
	}
}

// check checks one protected message. req is the request that in answers, or the IKE_SA_INIT
// response before the first one; init holds what the initiator sent in IKE_SA_INIT.
func (r *replayed) check(where string, ends [2]*generation, sender *generation, h header, in, req, init *parsed, initReq, initResp []byte) {
	r.Helper()
	g := ends[0]
	form := func(f message.Form) {
		r.Helper()
		if err := f.Check(in.ps); err != nil {
			r.Errorf("%s: %v", where, err)
		}
	}
	switch h.exchange {
	case exchangeIntermediate:
		m := &g.sa.handshake.inter
		ini, res := suite.PublicLen(m.methods[0])
		if !h.response {
			form(message.FormIntermediateRequest)
			m.i = suite.IntAuth(g.prot.prf, g.prot.keys.SKpi, m.i, in.inner.IntAuth(in.head), in.inner.Plain)
		} else {
			form(message.FormIntermediateResponse)
			m.r = suite.IntAuth(g.prot.prf, g.prot.keys.SKpr, m.r, in.inner.IntAuth(in.head), in.inner.Plain)
			ini = res
		}
		if len(in.ke.Data) != ini || uint16(in.ke.Method) != m.methods[0] {
			r.Errorf("%s: %d octets of %v", where, len(in.ke.Data), in.ke.Method)
		}
		if h.response {
			shared := r.nextShared()
			seed := suite.AdditionalSKEYSEED(g.prot.prf, g.prot.keys.SKd, shared, g.sa.handshake.ni, g.sa.handshake.nr)
			for _, e := range ends {
				if err := e.sa.mixIn(e, shared.Clone()); err != nil {
					r.Fatal(where, err)
				}
			}
			r.compare(g, seed)
		}
	case exchangeFollowupKE:
		if !h.response {
			form(message.FormFollowupKERequest)
			if in.notify(notifyAdditionalKE) == nil || !bytes.Equal(in.notify(notifyAdditionalKE).Data, r.created.notify(notifyAdditionalKE).Data) {
				r.Errorf("%s: another link", where)
			}
			return
		}
		form(message.FormFollowupKEResponse)
		shared, more := r.nextShared(), suite.CopySecret(r.more[0])
		r.more = r.more[1:]
		r.made(where, g, req, r.created, shared, more)
	case exchangeAuth:
		msg, nonce, skp, id := initReq, init.ps.Nonce().Data, g.prot.keys.SKpi, in.idi
		if h.response {
			form(message.FormIKEAuthOnlyResponse)
			msg, nonce, skp, id = initResp, init.nonce, g.prot.keys.SKpr, in.idr
		} else {
			form(message.FormIKEAuthFirstRequest)
			g.sa.handshake.inter.mid = h.id
		}
		octets := suite.SignedOctets(g.prot.prf, skp, msg, nonce, id.Body(), g.sa.handshake.inter.octets())
		if in.auth.Method != message.AuthPSK {
			leaf, err := x509.ParseCertificate(x509Chain(in.certs)[0])
			if err == nil {
				err = suite.VerifySignature(leaf.PublicKey, uint8(in.auth.Method), in.auth.Data, octets, suite.SignatureHashes())
			}
			if err != nil {
				r.Errorf("%s: %v", where, err)
			}
		} else if err := suite.VerifyPSK(g.prot.prf, suite.CopySecret([]byte(r.l.PSK)), octets, in.auth.Data); err != nil {
			r.Errorf("%s: %v", where, err)
		}
		if h.response {
			c, err := suite.Accept(init.sa, in.sa)
			if err != nil {
				r.Fatal(where, err)
			}
			r.child(g, c, suite.Secret{}, init.nonce, init.ps.Nonce().Data)
		}
	case exchangeCreateChild:
		if !h.response {
			form(message.ClassifyCreateChild(in.ps))
			return
		}
		c, err := suite.Accept(req.sa, in.sa)
		if err != nil {
			r.Fatal(where, err)
		}
		if c.HasAdditionalKE() {
			r.created = in
			return
		}
		var shared suite.Secret
		if in.ke != nil {
			shared = r.nextShared()
		}
		r.made(where, g, req, in, shared)
	case exchangeInformational:
		if h.response {
			form(message.FormInformationalResponse)
		} else {
			form(message.FormInformationalRequest)
		}
	}
	_ = sender
}

// made derives what CREATE_CHILD_SA, with what followed it, made.
func (r *replayed) made(where string, g *generation, req, in *parsed, shared suite.Secret, additional ...suite.Secret) {
	r.Helper()
	c, err := suite.Accept(req.sa, in.sa)
	if err != nil {
		r.Fatal(where, err)
	}
	form := message.FormRekeyChildResponse
	if c.Protocol == suite.ProtocolIKE {
		form = message.FormRekeyIKEResponse
	}
	if err := form.Check(in.ps); err != nil {
		r.Errorf("%s: %v", where, err)
	}
	if c.Protocol == suite.ProtocolIKE {
		seed := suite.RekeySKEYSEED(g.prot.prf, g.prot.keys.SKd, shared, req.nonce, in.nonce, additional...)
		r.derive(c, seed, req.nonce, in.nonce, binary.BigEndian.Uint64(req.sa[0].SPI), binary.BigEndian.Uint64(c.SPI))
		return
	}
	r.child(g, c, shared, req.nonce, in.nonce, additional...)
}

// replayHost has randomness only: nothing is sent in a replay.
type replayHost struct{ host }

func (replayHost) rand() io.Reader { return rand.Reader }
