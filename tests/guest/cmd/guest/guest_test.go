package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"refguest/internal/conf"
)

func TestTheAnswerShowsDigestsOfSecretsOnly(t *testing.T) {
	ext := &conf.External{
		Metadata: map[string]string{"id": "abcd2345", "tag": "v7"},
		Secrets:  map[string]string{"API_KEY": "hunter2"},
	}
	raw := newAnswer(ext, map[string]string{"A": "1"}).body(1500*time.Millisecond, "10.0.2.2:5")
	var got struct {
		Version string            `json:"version"`
		ID      string            `json:"id"`
		Env     map[string]string `json:"env"`
		Secrets map[string]string `json:"secrets"`
		Uptime  float64           `json:"uptime_s"`
		Remote  string            `json:"remote"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("hunter2"))
	if got.Secrets["API_KEY"] != hex.EncodeToString(sum[:]) || strings.Contains(string(raw), "hunter2") {
		t.Errorf("%s", raw)
	}
	if got.Version != "v7" || got.Uptime != 1.5 || got.Remote != "10.0.2.2:5" || got.Env["A"] != "1" {
		t.Errorf("%s", raw)
	}
}

func TestAContainerThatNeverAnswersIsUnhealthyAfterItsRetriesOnly(t *testing.T) {
	check := &conf.Healthcheck{StartPeriod: conf.Duration(10 * time.Second), Interval: conf.Duration(5 * time.Second), Retries: 2}
	for age, want := range map[time.Duration]containerHealth{
		time.Second:      {Status: "starting"},
		16 * time.Second: {Status: "starting", FailingStreak: 1},
		21 * time.Second: {Status: "unhealthy", FailingStreak: 2},
		31 * time.Second: {Status: "unhealthy", FailingStreak: 4},
	} {
		if got := unansweredHealth(age, check); *got != want {
			t.Errorf("%s: %+v", age, *got)
		}
	}
}

func TestAnEchoedBodyEndsWhereItsFramingSays(t *testing.T) {
	for _, c := range []struct{ head, body, want string }{
		{"Content-Length: 3\r\n", "onetwo", "one"},
		{"Transfer-Encoding: chunked\r\n", "3\r\ntwo\r\n0\r\n\r\nmore", "two"},
		{"", "all of it", "all of it"},
	} {
		text := "POST /echo HTTP/1.1\r\nHost: x\r\n" + c.head + "\r\n" + c.body
		raw := bufio.NewReader(strings.NewReader(text))
		request, err := http.ReadRequest(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(requestBody(request, raw)); string(got) != c.want {
			t.Errorf("%q: %q", c.head, got)
		}
	}
}

func TestRenewingShowsAnotherKey(t *testing.T) {
	var id identity
	first, err := id.renew("web.example.invalid")
	if err != nil {
		t.Fatal(err)
	}
	pem := id.pem()
	second, _ := id.renew("")
	if first == second || pem == id.pem() || len(first) != 64 {
		t.Errorf("%s %s", first, second)
	}
}
