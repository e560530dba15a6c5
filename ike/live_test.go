package ike

import (
	"bytes"
	"crypto/rand"
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
	for _, name := range []string{"psk-gcm", "cbc-sha2"} {
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
	keys    int
	childNo int
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
		sa := &SA{cfg: &Config{}, host: replayHost{}, fragment: true}
		ends[i] = &generation{sa: sa, initiator: i == 0, spiI: spiI, spiR: spiR, chosen: c}
		if err := ends[i].protect(seed.Clone(), ni, nr); err != nil {
			r.Fatal(err)
		}
	}
	want := r.l.IKEKeys[r.keys]
	r.keys++
	k := ends[0].prot.keys
	for label, got := range map[string]suite.Secret{"SKEYSEED": seed, "Sk_d": k.SKd, "Sk_ai": k.SKai, "Sk_ar": k.SKar, "Sk_ei": k.SKei, "Sk_er": k.SKer, "Sk_pi": k.SKpi, "Sk_pr": k.SKpr} {
		if !bytes.Equal(got.Bytes(), want[label]) {
			r.Errorf("%s of IKE SA %d differs", label, r.keys)
		}
	}
	r.ends[spiI] = ends
}

// child compares the keys of a CHILD SA.
func (r *replayed) child(g *generation, c suite.Chosen, shared suite.Secret, ni, nr []byte) {
	r.Helper()
	k, err := suite.DeriveChildKeys(g.prot.prf, g.prot.keys.SKd, c, shared, ni, nr)
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
	r := &replayed{T: t, l: l, ends: map[uint64][2]*generation{}, shared: l.all("key exchange secret")}
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
		if err != nil || in == nil {
			t.Fatalf("%s: does not open: %v", where, err)
		}
		inner, err := message.EncodeInner(in.ps)
		if err != nil || !bytes.Equal(inner.Plain, m.Plaintext) {
			t.Errorf("%s: does not encode to what it was (%v)", where, err)
		}
		r.check(where, ends, sender, h, in, req, init, initReq, initResp)
		if h.exchange != exchangeAuth || !m.Response {
			if !m.Response {
				if h.exchange != exchangeAuth {
					req = in
				} else {
					init.sa = in.sa // the first CHILD SA's offer
				}
			}
		}
	}
	if r.keys != len(l.IKEKeys) || r.childNo != len(l.Children) || len(r.shared) != 0 {
		t.Errorf("%d of %d IKE SAs, %d of %d CHILD SAs, %d secrets left", r.keys, len(l.IKEKeys), r.childNo, len(l.Children), len(r.shared))
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
	case exchangeAuth:
		msg, nonce, skp, id := initReq, init.ps.Nonce().Data, g.prot.keys.SKpi, in.idi
		if h.response {
			form(message.FormIKEAuthOnlyResponse)
			msg, nonce, skp, id = initResp, init.nonce, g.prot.keys.SKpr, in.idr
		} else {
			form(message.FormIKEAuthFirstRequest)
		}
		octets := suite.SignedOctets(g.prot.prf, skp, msg, nonce, id.Body(), nil)
		if err := suite.VerifyPSK(g.prot.prf, suite.CopySecret([]byte(r.l.PSK)), octets, in.auth.Data); err != nil {
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
		var shared suite.Secret
		if in.ke != nil {
			shared = r.nextShared()
		}
		if c.Protocol == suite.ProtocolIKE {
			form(message.FormRekeyIKEResponse)
			seed := suite.RekeySKEYSEED(g.prot.prf, g.prot.keys.SKd, shared, req.nonce, in.nonce)
			r.derive(c, seed, req.nonce, in.nonce, binary.BigEndian.Uint64(req.sa[0].SPI), binary.BigEndian.Uint64(c.SPI))
			return
		}
		form(message.FormRekeyChildResponse)
		r.child(g, c, shared, req.nonce, in.nonce)
	case exchangeInformational:
		if h.response {
			form(message.FormInformationalResponse)
		} else {
			form(message.FormInformationalRequest)
		}
	}
	_ = sender
}

// replayHost has randomness only: nothing is sent in a replay.
type replayHost struct{ host }

func (replayHost) rand() io.Reader { return rand.Reader }
