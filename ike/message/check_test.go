package message_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"wardgate/ike/message"
)

// build makes payloads from names, as the RFCs write them: "SA KE No N(COOKIE)".
func build(tb testing.TB, names string) message.Payloads {
	tb.Helper()
	offer := []message.Proposal{{Number: 1, Protocol: message.ProtocolESP}}
	all := message.NewSelector(0, 0, 65535, netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.255"))
	known := map[string]func() message.Payload{
		"SA": func() message.Payload { return &message.SA{Proposals: offer} },
		"SA(IKE)": func() message.Payload {
			return &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolIKE}}}
		},
		"SA(1,2)":     func() message.Payload { return &message.SA{Proposals: []message.Proposal{{Number: 1}, {Number: 2}}} },
		"SA(1,3)":     func() message.Payload { return &message.SA{Proposals: []message.Proposal{{Number: 1}, {Number: 3}}} },
		"SA(7)":       func() message.Payload { return &message.SA{Proposals: []message.Proposal{{Number: 7}}} },
		"KE":          func() message.Payload { return &message.KE{} },
		"No":          func() message.Payload { return &message.Nonce{} },
		"IDi":         func() message.Payload { return message.NewIDi(message.IDFQDN, []byte("i")) },
		"IDr":         func() message.Payload { return message.NewIDr(message.IDFQDN, []byte("r")) },
		"CERT":        func() message.Payload { return &message.Cert{} },
		"CERTREQ":     func() message.Payload { return &message.CertReq{} },
		"AUTH":        func() message.Payload { return &message.Auth{} },
		"TSi":         func() message.Payload { return message.NewTSi(all) },
		"TSr":         func() message.Payload { return message.NewTSr(all) },
		"D":           func() message.Payload { return &message.Delete{Protocol: message.ProtocolIKE} },
		"CP":          func() message.Payload { return &message.CP{Type: message.CfgRequest} },
		"EAP":         func() message.Payload { return &message.EAP{Code: message.EAPRequest} },
		"V":           func() message.Payload { return &message.VendorID{} },
		"PS":          func() message.Payload { return &message.PuzzleSolution{Data: make([]byte, 4)} },
		"N(COOKIE)":   func() message.Payload { return message.NewNotify(message.NotifyCookie) },
		"N(REDIRECT)": func() message.Payload { return message.NewNotify(message.NotifyRedirect) },
		"N(INVAL_KE)": func() message.Payload { return message.NewInvalidKE(message.KEECP384) },
		"N(ERROR)":    func() message.Payload { return message.NewNotify(8191) },
		"N(STATUS)":   func() message.Payload { return message.NewNotify(40960) },
		"N(REKEY)":    func() message.Payload { return message.NewRekeySA(message.ProtocolESP, 1) },
		"N(REKEY,)":   func() message.Payload { return message.NewNotify(message.NotifyRekeySA) },
	}
	ps := message.Payloads{}
	for _, n := range strings.Fields(names) {
		if known[n] == nil {
			tb.Fatalf("no payload %q", n)
		}
		ps = append(ps, known[n]())
	}
	return ps
}

func TestCheck(t *testing.T) {
	const ok = ""
	for _, c := range []struct {
		form     message.Form
		payloads string
		want     string // problem and payload
	}{
		{message.FormIKESAInitRequest, "SA KE No", ok},
		{message.FormIKESAInitRequest, "N(COOKIE) SA(1,2) KE No N(STATUS) V V PS", ok},
		{message.FormIKESAInitRequest, "N(ERROR) SA KE No", ok},
		{message.FormIKESAInitRequest, "", "missing SA"},
		{message.FormIKESAInitRequest, "N(COOKIE)", "missing SA"},
		{message.FormIKESAInitRequest, "N(COOKIE) PS PS SA KE No", "duplicate PS"},
		{message.FormIKESAInitResponse, "SA KE No PS", "not-allowed PS"},
		{message.FormIKESAInitRequest, "N(ERROR)", "missing SA"},
		{message.FormIKESAInitRequest, "SA No", "missing KE"},
		{message.FormIKESAInitRequest, "SA KE", "missing Nonce"},
		{message.FormIKESAInitRequest, "SA KE No No", "duplicate Nonce"},
		{message.FormIKESAInitRequest, "SA SA KE No", "duplicate SA"},
		{message.FormIKESAInitRequest, "SA KE No TSi", "not-allowed TSi"},
		{message.FormIKESAInitRequest, "SA KE No EAP", "not-allowed EAP"},
		{message.FormIKESAInitRequest, "SA(1,3) KE No", "proposals SA"},
		{message.FormIKESAInitRequest, "SA(7) KE No", "proposals SA"},

		{message.FormIKESAInitResponse, "SA KE No CERTREQ CERTREQ N(STATUS)", ok},
		{message.FormIKESAInitResponse, "SA(7) KE No", ok},
		{message.FormIKESAInitResponse, "SA(1,2) KE No", "proposals SA"},
		{message.FormIKESAInitResponse, "N(COOKIE)", ok},
		{message.FormIKESAInitResponse, "N(REDIRECT)", ok},
		{message.FormIKESAInitResponse, "N(INVAL_KE) V", ok},
		{message.FormIKESAInitResponse, "N(ERROR)", ok},
		{message.FormIKESAInitResponse, "N(STATUS)", "missing SA"},
		{message.FormIKESAInitResponse, "N(COOKIE) SA", "missing KE"},
		{message.FormIKESAInitResponse, "N(ERROR) AUTH", "not-allowed AUTH"},

		{message.FormIKEAuthFirstRequest, "IDi AUTH SA TSi TSr", ok},
		{message.FormIKEAuthFirstRequest, "IDi CERT CERT N(STATUS) CERTREQ IDr AUTH CP SA(1,2) TSi TSr N(STATUS)", ok},
		{message.FormIKEAuthFirstRequest, "IDi SA TSi TSr", "missing AUTH"}, // EAP
		{message.FormIKEAuthFirstRequest, "IDi AUTH", "missing SA"},         // childless
		{message.FormIKEAuthFirstRequest, "AUTH SA TSi TSr", "missing IDi"},
		{message.FormIKEAuthFirstRequest, "IDi AUTH AUTH SA TSi TSr", "duplicate AUTH"},
		{message.FormIKEAuthFirstRequest, "IDi IDi AUTH SA TSi TSr", "duplicate IDi"},
		{message.FormIKEAuthFirstRequest, "IDi AUTH SA TSi TSr N(ERROR)", ok},
		{message.FormIKEAuthFirstRequest, "N(ERROR)", "missing IDi"},
		{message.FormIKEAuthFirstRequest, "IDi AUTH SA TSi TSi TSr", "duplicate TSi"},
		{message.FormIKEAuthFirstRequest, "IDi AUTH SA TSi TSr KE", "not-allowed KE"},
		{message.FormIKEAuthFirstRequest, "IDi AUTH SA TSi TSr D", "not-allowed D"},

		{message.FormIKEAuthNextRequest, "IDi CERT AUTH", ok},
		{message.FormIKEAuthNextRequest, "", ok},
		{message.FormIKEAuthNextRequest, "IDi CERT AUTH N(STATUS)", ok},
		{message.FormIKEAuthNextRequest, "IDi", "missing AUTH"}, // EAP
		{message.FormIKEAuthNextRequest, "AUTH", "missing IDi"},
		{message.FormIKEAuthNextRequest, "IDi AUTH SA TSi TSr", "not-allowed SA"},
		{message.FormIKEAuthNextRequest, "EAP", "not-allowed EAP"},

		{message.FormIKEAuthFirstResponse, "IDr CERT AUTH", ok},
		{message.FormIKEAuthFirstResponse, "IDr CERT AUTH N(STATUS)", ok},
		{message.FormIKEAuthFirstResponse, "N(ERROR)", ok},
		{message.FormIKEAuthFirstResponse, "IDr AUTH N(ERROR)", ok},
		{message.FormIKEAuthFirstResponse, "IDr N(ERROR)", "missing AUTH"},
		{message.FormIKEAuthFirstResponse, "", "missing IDr"},
		{message.FormIKEAuthFirstResponse, "IDr AUTH SA TSi TSr", "not-allowed SA"},
		{message.FormIKEAuthNextResponse, "", ok},
		{message.FormIKEAuthNextResponse, "IDr CERT AUTH", ok},
		{message.FormIKEAuthNextResponse, "IDr", "missing AUTH"},
		{message.FormIKEAuthLastResponse, "SA TSi TSr", ok},
		{message.FormIKEAuthLastResponse, "IDr CERT AUTH SA TSi TSr", ok},
		{message.FormIKEAuthLastResponse, "AUTH SA TSi TSr", "missing IDr"},
		{message.FormIKEAuthLastResponse, "IDr CERT AUTH", "missing SA"},
		{message.FormIKEAuthLastResponse, "N(ERROR)", ok},

		{message.FormIKEAuthOnlyResponse, "IDr CERT AUTH CP SA TSi TSr N(STATUS)", ok},
		{message.FormIKEAuthOnlyResponse, "IDr AUTH N(ERROR)", ok}, // no CHILD SA, IKE SA stands
		{message.FormIKEAuthOnlyResponse, "N(ERROR)", ok},
		{message.FormIKEAuthOnlyResponse, "IDr AUTH SA N(ERROR)", "missing TSi"},
		{message.FormIKEAuthOnlyResponse, "IDr SA TSi TSr", "missing AUTH"},
		{message.FormIKEAuthOnlyResponse, "IDr AUTH N(STATUS)", "missing SA"},
		{message.FormIKEAuthOnlyResponse, "IDi IDr AUTH SA TSi TSr", "not-allowed IDi"},

		{message.FormNewChildRequest, "SA No TSi TSr", ok},
		{message.FormNewChildRequest, "SA No KE TSi TSr N(STATUS)", ok},
		{message.FormNewChildRequest, "SA No", "missing TSi"},
		{message.FormNewChildRequest, "SA TSi TSr", "missing Nonce"},
		{message.FormNewChildResponse, "SA No KE TSi TSr", ok},
		{message.FormNewChildResponse, "N(ERROR)", ok},
		{message.FormNewChildResponse, "", "missing SA"},
		{message.FormRekeyChildRequest, "N(REKEY) SA No TSi TSr", ok},
		{message.FormRekeyChildRequest, "SA No TSi TSr", "rekey-notify N"},
		{message.FormRekeyChildRequest, "N(REKEY,) SA No TSi TSr", "rekey-notify N"},
		{message.FormRekeyChildRequest, "N(REKEY) N(REKEY) SA No TSi TSr", "rekey-notify N"},
		{message.FormRekeyChildResponse, "SA No TSi TSr", ok},
		{message.FormRekeyIKERequest, "SA(IKE) No KE", ok},
		{message.FormRekeyIKERequest, "SA(IKE) No", "missing KE"},
		{message.FormRekeyIKERequest, "SA(IKE) No KE TSi TSr", "not-allowed TSi"},
		{message.FormRekeyIKEResponse, "SA(IKE) No KE", ok},
		{message.FormRekeyIKEResponse, "N(ERROR)", ok},

		{message.FormInformationalRequest, "", ok},
		{message.FormInformationalRequest, "D D N(STATUS) N(ERROR) CP", ok},
		{message.FormInformationalRequest, "D CP CP", "duplicate CP"},
		{message.FormInformationalRequest, "SA", "not-allowed SA"},
		{message.FormInformationalResponse, "D", ok},
		{message.FormInformationalResponse, "KE", "not-allowed KE"},
		{message.FormFollowupKERequest, "KE N(STATUS)", ok},
		{message.FormFollowupKERequest, "", "missing KE"},
		{message.FormIntermediateResponse, "KE", ok},
		{0, "", "not-allowed NoNext"},
		{99, "", "not-allowed NoNext"},
	} {
		err := c.form.Check(build(t, c.payloads))
		got := ""
		var check *message.CheckError
		if errors.As(err, &check) {
			got = fmt.Sprintf("%v %v", check.Problem, check.Payload)
			if !strings.Contains(err.Error(), c.form.String()) {
				t.Errorf("error %q does not name the message", err)
			}
		} else if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v [ %s ]: %q, want %q", c.form, c.payloads, got, c.want)
		}
	}
}

func TestClassifyCreateChild(t *testing.T) {
	for payloads, want := range map[string]message.Form{
		"SA No TSi TSr":          message.FormNewChildRequest,
		"N(REKEY) SA No TSi TSr": message.FormRekeyChildRequest,
		"SA(IKE) No KE":          message.FormRekeyIKERequest,
		"":                       message.FormNewChildRequest,
	} {
		if got := message.ClassifyCreateChild(build(t, payloads)); got != want {
			t.Errorf("[ %s ]: %v, want %v", payloads, got, want)
		}
	}
}

// Every Form has a name, so that no message is without rules by an oversight in the table.
func TestFormsComplete(t *testing.T) {
	seen := map[string]bool{}
	for f := message.FormIKESAInitRequest; f <= message.FormFollowupKEResponse; f++ {
		if s := f.String(); s == "" || seen[s] {
			t.Errorf("form %d is named %q, as another one or not at all", f, s)
		} else {
			seen[s] = true
		}
	}
	if got := message.Form(200).String(); got != "Form(200)" {
		t.Error(got)
	}
}
