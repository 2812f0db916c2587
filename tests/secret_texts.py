"""Texts with passwords, tokens and signatures, and others that only look so: text -> as printed."""

SECRETS = {
    "see https://user:p@ss%40word@host.org/a?b=c": "see https://***@host.org/a?b=c",
    "git+https://TOKEN@host/x@main": "git+https://***@host/x@main",
    "git+ssh://git@host/x": "git+ssh://git@host/x",
    "ssh://me:pw@host": "ssh://***@host",
    "http://u:p@proxy:3128 failed": "http://***@proxy:3128 failed",
    "url: /r/x?token=abc&v=1 (Caused by": "url: /r/x?token=***&v=1 (Caused by",
    "'https://h/o?X-Goog-Algorithm=A&X-Goog-Credential=me%2F1&X-Goog-Signature=0f&x=1'": (
        "'https://h/o?X-Goog-Algorithm=A&X-Goog-Credential=***&X-Goog-Signature=***&x=1'"
    ),
    "https://h/o?AWSAccessKeyId=A&Signature=b%2B&Expires=1": (
        "https://h/o?AWSAccessKeyId=***&Signature=***&Expires=1"
    ),
    "https://h/o?sv=2020&sig=a/b+c%3D&se=1)": "https://h/o?sv=2020&sig=***&se=1)",
    "https://h/?Key-Pair-Id=K;password=x": "https://h/?Key-Pair-Id=***;password=***",
    "{'authorization': 'Bearer ab.cd-ef_12'}": "{'authorization': 'Bearer ***'}",
    # Fragments, headers and logins.
    "https://h/back#access_token=abc&state=1": "https://h/back#access_token=***&state=1",
    "https://h/back#state=1;id_token=abc": "https://h/back#state=1;id_token=***",
    "Authorization: token abc": "Authorization: token ***",
    "authorization: Bearer abc (401)": "authorization: Bearer *** (401)",
    "Proxy-Authorization: Basic dTpw": "Proxy-Authorization: Basic ***",
    "{'Authorization': 'token abc', 'x': 1}": "{'Authorization': 'token ***', 'x': 1}",
    "AUTHORIZATION=0123456789abcdef": "AUTHORIZATION=***",
    "Authorization: AWS4-HMAC-SHA256 Credential=A/s3, SignedHeaders=host, Signature=0f": (
        "Authorization: AWS4-HMAC-SHA256 ***"
    ),
    "x-goog-api-key: abc": "x-goog-api-key: ***",
    "{'X-Auth-Token': 'abc'}": "{'X-Auth-Token': '***'}",
    "PRIVATE-TOKEN: abc": "PRIVATE-TOKEN: ***",
    '{"access_token": "abc", "expires_in": 3599}': '{"access_token": "***", "expires_in": 3599}',
    "login(password='abc', user='me')": "login(password='***', user='me')",
    "HF_TOKEN=abc jaxcls train": "HF_TOKEN=*** jaxcls train",
    "environ({'WANDB_API_KEY': 'abc'})": "environ({'WANDB_API_KEY': '***'})",
    "user:pw@host": "***@host",
    "proxy=user:p@ss:w0rd@proxy.host:3128 failed": "proxy=***@proxy.host:3128 failed",
    "(me:pw@host.org/path)": "(***@host.org/path)",
    # Bare tokens, none of which is anybody's.
    **{
        f"cannot log in with {token}.": "cannot log in with ***."
        for token in (
            f"hf_{'aBcD' * 8}",
            "hf_ab1cdefg",
            f"ghp_{'a1' * 18}",
            f"gho_{'a1' * 18}",
            f"github_pat_{'a1_' * 12}",
            f"glpat-{'a1' * 10}",
            f"sk-{'a1' * 20}",
            f"sk-ant-api03-{'a1-' * 12}b",
            f"sk-proj-{'a1_' * 12}",
            f"sk_live_{'a1' * 12}",
            f"AIza{'aB-' * 11}c",
            f"ya29.{'aB' * 20}",
            "xoxb-123456789012-abcdef",
            f"AKIA{'A1' * 8}",
            f"npm_{'a1' * 18}",
            f"pypi-{'a1' * 30}",
            f"eyJ{'a' * 20}.eyJ{'b' * 20}.{'c' * 20}",
        )
    },
    # No secrets.
    "gs://bucket/runs/a@b and me@host.org, x?y=1": "gs://bucket/runs/a@b and me@host.org, x?y=1",
    "basic steps: tokens=3 a/b?c": "basic steps: tokens=3 a/b?c",
    **{
        text: text
        for text in (
            "authorization: you have no rights there",
            "the token in HF_TOKEN is not valid; HF_TOKEN: log in",
            "data.image_key: 'a' is not of type Image; data.label_key='b'",
            "keys=3, key=5, monkey=1, password",
            "folder:me@home tfds:a:1.2.0 hf:me/net@main mailto:me@host.org",
            "host/net:tag@sha256:0123 and /data/a:b@c/d",
            "train[:90%]@x 12:30 package.module:factory",
            "disk-0123456789abcdef-0123 task-0123456789abcdef-01 sk-learn",
            "hf_datasets hf_hub_download",
            "git@host:me/net.git 0123456789abcdef0123456789abcdef01234567 AKITA eyJ.eyJ.x",
            "basic bearer steps",
        )
    },
}
