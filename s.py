import heapq, random, itertools
def sim(mk, clients=100):
    q=[];c=itertools.count();ver=0;calls=0;tm=0
    d=lambda: abs(random.gauss(10,2))
    bo=[mk() for _ in range(clients)]
    for i in range(clients): heapq.heappush(q,(d(),next(c),0,i,0))
    while q:
        tm,_,k,i,p=heapq.heappop(q)
        if k==0: heapq.heappush(q,(tm+d(),next(c),1,i,ver))
        elif k==1: heapq.heappush(q,(tm+d(),next(c),2,i,p))
        elif k==2:
            calls+=1; ok=p==ver
            if ok: ver+=1
            heapq.heappush(q,(tm+d(),next(c),3,i,ok))
        else:
            if not p: heapq.heappush(q,(tm+d()+bo[i](),next(c),0,i,0))
    return tm,calls
B,C=5,2000
def orig():
    s=[B]
    def f(): s[0]=min(C,random.uniform(B,s[0]*3)); return s[0]
    return f
def trunc():
    s=[B]
    def f(): s[0]=random.uniform(B,min(C,s[0]*3)); return s[0]
    return f
def keep():
    s=[B]
    def f():
        r=random.uniform(B,s[0]*3)
        s[0]=min(C,r)
        return r if r<=C else random.uniform(B,C)
    return f
def reflect():
    s=[B]
    def f():
        r=random.uniform(B,s[0]*3); s[0]=min(C,r)
        return r if r<=C else C-random.uniform(0,C/2)
    return f
def third():
    s=[B]
    def f():
        r=random.uniform(B,s[0]*3); s[0]=min(C,r)
        return r if r<=C else random.uniform(C*2/3,C)
    return f
def wrap():
    # r in (C, 3C]: folded onto the third below the cap
    s=[B]
    def f():
        r=random.uniform(B,s[0]*3); s[0]=min(C,r)
        return r if r<=C else C-(r-C)/2*0.2
    return f
def full():
    n=[0]
    def f(): n[0]+=1; return random.uniform(0,min(C,B*2**n[0]))
    return f
def fulln0():
    n=[0]
    def f(): v=min(C,B*2**n[0]); n[0]+=1; return random.uniform(0,v)
    return f
random.seed(1)
for name,mk in dict(orig=orig,trunc=trunc,keep=keep,reflect=reflect,third=third,full=full,fulln0=fulln0).items():
    r=[sim(mk) for _ in range(150)]
    print(name, sum(a for a,_ in r)/len(r), sum(b for _,b in r)/len(r))
