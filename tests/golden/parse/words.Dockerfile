FROM alpine
ENV old form = value
ENV a=1 'b=2'"=3" c='x y'\ z d=
LABEL "com.example.key"="a value" other=$X
VOLUME /a /b
VOLUME ["/c d"]
EXPOSE 80 443/tcp 1000-1010
USER me:us
STOPSIGNAL 9
MAINTAINER somebody <s@example.org>
ADD --checksum=sha256:00 --unpack --keep-git-dir=False https://example.org/x.tar /x/
ONBUILD ADD --exclude=*.md --exclude="a b" ["x y", "/z"]
