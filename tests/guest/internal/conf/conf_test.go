package conf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

const workloadText = `
cvm-version: 0.11.0
cpus: 2
future-field: {of: [any, shape]}
cvm-network: {inbound-ports: [8080, 9000]}
containers:
  - name: web
    image: example.invalid/web@sha256:00
    env: [COLOUR: red, REGION, COUNT: 3, GUEST_SICK_AFTER_S: 5]
    secrets: [A, B]
    healthcheck: {test: [CMD, true], interval: 10s, start_period: 1m30s}
  - name: worker
    secrets: [B, C, D]
    registry: {username: someone}
`

const externalText = `
env: {REGION: north, COLOUR: blue, GUEST_SICK_AFTER_S: "9", EXTRA: 1}
secrets: {A: one, B: "two: three", C: null, D: ""}
metadata: {id: abcd2345, tag: v1, gpu: {count: 0}}
network: {address: 10.1.2.3/24, gateway: 10.1.2.1}
`

func TestPaddingIsStripped(t *testing.T) {
	disk := append([]byte("a: 1\n"), make([]byte, 507)...)
	payload, err := Payload(disk)
	if err != nil || string(payload) != "a: 1\n" {
		t.Errorf("%q, %v", payload, err)
	}
	if payload, err = Payload([]byte("exact")); err != nil || string(payload) != "exact" {
		t.Errorf("%q, %v", payload, err)
	}
}

func TestEmptyAndOversizedDisksAreRefused(t *testing.T) {
	for _, disk := range [][]byte{nil, make([]byte, 4096), bytes.Repeat([]byte("x"), MaxPayload+1)} {
		if _, err := Payload(disk); err == nil {
			t.Errorf("%d bytes: accepted", len(disk))
		}
	}
	if _, err := Payload(bytes.Repeat([]byte("x"), MaxPayload)); err != nil {
		t.Error(err)
	}
}

func TestHashMustAgree(t *testing.T) {
	payload := []byte("a: 1\n")
	sum := sha256.Sum256(payload)
	if err := CheckHash(payload, hex.EncodeToString(sum[:])); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"", strings.Repeat("0", 64), hex.EncodeToString(sum[:8])} {
		if CheckHash(payload, want) == nil {
			t.Errorf("%q: accepted", want)
		}
	}
}

func TestWorkloadIsReadAndUnknownFieldsTolerated(t *testing.T) {
	w, err := ParseWorkload([]byte(workloadText))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(w.CVMNetwork.InboundPorts, []int{8080, 9000}) || len(w.Containers) != 2 {
		t.Errorf("%+v", w)
	}
	if got := w.SecretNames(); !reflect.DeepEqual(got, []string{"A", "B", "C", "D"}) {
		t.Errorf("secrets %v", got)
	}
	check := w.Containers[0].Healthcheck
	if time.Duration(check.StartPeriod) != 90*time.Second || time.Duration(check.Interval) != 10*time.Second {
		t.Errorf("%+v", check)
	}
	if !w.UsesRegistryAuth() {
		t.Error("registry not seen")
	}
}

func TestBadWorkloadsAreRefused(t *testing.T) {
	for _, text := range []string{
		"containers: [", "cpus: 1\ncpus: 2", "cvm-network: {inbound-ports: [443]}",
		"cvm-network: {inbound-ports: [70000]}", "containers: [{env: [{A: 1, B: 2}]}]",
		"containers: [{healthcheck: {interval: soon}}]",
	} {
		if _, err := ParseWorkload([]byte(text)); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func TestExternalConfigGivesAddressAndMetadata(t *testing.T) {
	ext, err := ParseExternal([]byte(externalText))
	if err != nil {
		t.Fatal(err)
	}
	if ext.Address.String() != "10.1.2.3/24" || ext.Gateway.String() != "10.1.2.1" {
		t.Errorf("%s via %s", ext.Address.String(), ext.Gateway)
	}
	if ext.Metadata["tag"] != "v1" || ext.Secrets["B"] != "two: three" {
		t.Errorf("%+v", ext.Metadata)
	}
}

func TestBadNetworksAreRefused(t *testing.T) {
	for _, network := range []string{
		"", "address: 10.0.0.2, gateway: 10.0.0.1", "address: 10.0.0.2/31, gateway: 10.0.0.3",
		"address: 10.0.0.2/24, gateway: 10.0.1.1", "address: 10.0.0.2/24, gateway: 10.0.0.2",
		"address: 'fe80::2/64', gateway: 'fe80::1'",
	} {
		if _, err := ParseExternal([]byte("network: {" + network + "}")); err == nil {
			t.Errorf("%q: accepted", network)
		}
	}
}

func TestErrorsOfTheExternalConfigQuoteNothing(t *testing.T) {
	for _, text := range []string{
		"secrets: hunter2", "secrets: {A: [hunter2]}", "secrets: {A: 'hunter2", "hunter2",
		"network: {address: [hunter2]}",
	} {
		_, err := ParseExternal([]byte(text))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMeasuredValuesWinSaveForBehaviour(t *testing.T) {
	w, _ := ParseWorkload([]byte(workloadText))
	ext, _ := ParseExternal([]byte(externalText))
	want := map[string]string{"COLOUR": "red", "REGION": "north", "COUNT": "3",
		"GUEST_SICK_AFTER_S": "9", "EXTRA": "1"}
	if got := Environment(w, ext); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestMissingSecretsAreNamed(t *testing.T) {
	w, _ := ParseWorkload([]byte(workloadText))
	ext, _ := ParseExternal([]byte(externalText))
	if got := MissingSecrets(w, ext, false); !reflect.DeepEqual(got, []string{"C"}) {
		t.Errorf("%v", got)
	}
	ext.Secrets["A"] = "null"
	if got := MissingSecrets(w, ext, true); !reflect.DeepEqual(got, []string{"A", "C", "D"}) {
		t.Errorf("%v", got)
	}
}

func TestUnknownMembersOfTheNetworkAreSeen(t *testing.T) {
	ext, err := ParseExternal([]byte("network: {address: 10.0.0.2/24, gateway: 10.0.0.1, mtu: 9000}\nmore: 1"))
	if err != nil || !reflect.DeepEqual(ext.Strange, []string{"mtu"}) {
		t.Errorf("%+v, %v", ext, err)
	}
}

func TestTheShimLetsThroughWhatIsListed(t *testing.T) {
	shim := Shim{Paths: []string{"/", "/v1/*", "/user*"}}
	for path, want := range map[string]bool{
		"/": true, "/v1/x": true, "/v1/": true, "/v1": false, "/user": true, "/user/1": true,
		"/users": false, "/health": false,
	} {
		if shim.Lets(path) != want {
			t.Error(path)
		}
	}
	if !(&Shim{}).Lets("/anything") {
		t.Error("without a list all are let through")
	}
}

func TestTheShimGuardsWhatIsDeclared(t *testing.T) {
	none, some, plane := []string{}, []string{"/metrics"}, ""
	for _, c := range []struct {
		shim Shim
		path string
		want bool
	}{
		{Shim{}, "/v1/chat/completions", false},
		{Shim{Authenticated: true}, "/v1/chat/completions", true},
		{Shim{Authenticated: true}, "/health", false},
		{Shim{Authenticated: true, Endpoints: &none}, "/v1/chat/completions", false},
		{Shim{Authenticated: true, Endpoints: &some}, "/metrics", true},
		{Shim{Authenticated: true, Endpoints: &some, ControlPlane: &plane}, "/metrics", false},
	} {
		if got := c.shim.Guards(c.path); got != c.want {
			t.Errorf("%+v %s: %v", c.shim, c.path, got)
		}
	}
}

func TestImagesOfRegistriesThatNobodyCanHaveArePlayed(t *testing.T) {
	for image, want := range map[string]bool{
		"registry.example/web@sha256:0": true, "a.b.invalid:5000/x/web:1@sha256:0": true,
		"ghcr.io/x/web@sha256:0": false, "example/web@sha256:0": false, "busybox@sha256:0": false,
		"example.com/web@sha256:0": false,
	} {
		if got := (&Container{Image: image}).Played(); got != want {
			t.Errorf("%s: %v", image, got)
		}
	}
}

func TestSizesHaveDockersUnits(t *testing.T) {
	w, err := ParseWorkload([]byte("containers: [{name: a, memory: 64m, shm_size: 1.5GiB}, {name: b, memory: 4096}]"))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := w.Containers[0], w.Containers[1]; a.Memory != 64<<20 || a.ShmSize != 3<<29 || b.Memory != 4096 {
		t.Errorf("%+v %+v", a, b)
	}
	if _, err := ParseWorkload([]byte("containers: [{name: a, memory: much}]")); err == nil {
		t.Error("accepted")
	}
}

func TestNetworksMustBeDeclared(t *testing.T) {
	for text, good := range map[string]bool{
		"networks: {web: {egress: closed}}\ncontainers: [{name: a, networks: [web]}]": true,
		"containers: [{name: a, networks: [web]}]":                                    false,
		"networks: {shim-net: {}}":                                                    false,
		"containers: [{name: a}, {name: a}]":                                          false,
		"containers: [{name: a}]\nshim: {upstream-container: b}":                      false,
	} {
		w, err := ParseWorkload([]byte(text))
		if (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
		if good && w.Shim.UpstreamContainer != "a" {
			t.Error("the first container is the upstream")
		}
	}
}
